/* libjrs: deformable registration of CT with a trained JRS-GAN network.
 *
 * This is the first slice of the interface: versions, errors, and models that are loaded, checked and
 * described. Sessions (registration itself), cancelling, logging and signatures are not here yet.
 *
 * Rules
 *   - Functions that can fail return an int32_t status: 0 is success, see JRS_E_*. On failure outputs are
 *     untouched unless said otherwise, and jrs_last_error() tells the reason in words.
 *   - Handles are opaque. Every *_free accepts NULL. Freeing a handle twice or using it afterwards is undefined.
 *   - Strings are UTF-8 and end in NUL.
 *   - No call aborts or exits the host, prints, reads the environment, installs signal handlers or starts
 *     threads; files are read only where a path is given.
 *   - Licence: MIT or Apache-2.0.
 */
#ifndef JRS_H
#define JRS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by every incompatible change of this header. */
#define JRS_ABI_VERSION 0u

/* Status codes. The hundreds are the class; a number is never reused. */
#define JRS_OK 0
/* 1xx argument: NULL where a pointer is needed, or text that is not UTF-8. */
#define JRS_E_ARGUMENT 100
/* 1xx argument: the caller's buffer is too small; the needed size was written. */
#define JRS_E_BUFFER_TOO_SMALL 101
/* 3xx model: the file cannot be read. */
#define JRS_E_MODEL_UNREADABLE 300
/* 3xx model: damaged, of another network or of a newer format. */
#define JRS_E_MODEL_INVALID 301
/* 9xx internal: a defect of libjrs. Please report the message. */
#define JRS_E_INTERNAL 900

/* A trained network. Never changes; threads may share it. */
typedef struct jrs_model jrs_model;

/* JRS_ABI_VERSION of the library that is loaded; compare with the header's before any other call. */
uint32_t jrs_abi_version(void);

/* The library's version, for instance "0.1.0". Valid for ever; not to be freed. */
const char *jrs_version_string(void);

/* Why the last failing call on this thread failed; "" if none did. Valid until the next call on this
 * thread that fails; not to be freed. */
const char *jrs_last_error(void);

/* Reads a model file and checks every weight against its hash. On success *model is a new handle.
 * JRS_E_ARGUMENT, JRS_E_MODEL_UNREADABLE, JRS_E_MODEL_INVALID. */
int32_t jrs_model_load(const char *path, jrs_model **model);

/* The same from a file's content in memory, which is not needed after the call. */
int32_t jrs_model_load_memory(const void *bytes, size_t length, jrs_model **model);

/* Ends a model. NULL does nothing. */
void jrs_model_free(jrs_model *model);

/* The model's description as JSON: network, preprocessing, conventions, training provenance, hashes.
 * Writes at most `capacity` bytes with the final NUL into `buffer`, and the number of bytes it takes
 * (with the NUL) into *needed. buffer = NULL with capacity = 0 asks for the size only and succeeds.
 * JRS_E_BUFFER_TOO_SMALL: *needed is written, the buffer is untouched. */
int32_t jrs_model_manifest_json(const jrs_model *model, char *buffer, size_t capacity, size_t *needed);

#ifdef __cplusplus
}
#endif

#endif

/* libjrs: deformable registration of CT with a trained JRS-GAN network.
 *
 * Generated from the library's source; the manual is docs/integrators.md. Licence: MIT or Apache-2.0.
 *
 * Rules
 *   - Functions that can fail return an int32_t status: 0 is success, see JRS_E_*. On failure outputs are untouched
 *     unless said otherwise, and jrs_last_error() tells the reason in words.
 *   - Handles are opaque. Every *_free accepts NULL. Freeing a handle twice or using it afterwards is undefined.
 *   - Structs begin with struct_size. Initialise inputs with *_init(&s, sizeof s); set struct_size of outputs.
 *   - Strings are UTF-8 and end in NUL. Lengths are millimetres, points are LPS, intensities are HU.
 *   - No call aborts or exits the host, prints, reads the environment or installs signal handlers; files are opened
 *     only where a path is given; threads belong to sessions.
 *   - Callbacks come on the thread that made the call. They must return: no longjmp, no exception.
 *   - A model and a result may be read by many threads at a time; a session serves one call at a time; a cancel token
 *     may be used from anywhere.
 */

#ifndef JRS_H
#define JRS_H

#include <stddef.h>
#include <stdint.h>

// Raised by every incompatible change of this header; the library's soname carries it.
#define JRS_ABI_VERSION 0

// Success. The hundreds of all other codes are their class; a number is never reused.
#define JRS_OK 0

// Argument: NULL where a pointer is needed, text that is not UTF-8, or a value that is not allowed.
#define JRS_E_ARGUMENT 100

// Argument: the caller's buffer is too small; the needed size was written.
#define JRS_E_BUFFER_TOO_SMALL 101

// Argument: struct_size is not set, or the struct is of a newer version and uses what this library does not know.
#define JRS_E_STRUCT_SIZE 102

// Argument: the session is in a call already; a session serves one call at a time.
#define JRS_E_BUSY 103

// Argument: the option exists and this build or this machine does not have it.
#define JRS_E_UNSUPPORTED 104

// Geometry: sizes, strides, spacing, origin or axes that cannot be those of a scan.
#define JRS_E_GEOMETRY 200

// Model: the file cannot be read.
#define JRS_E_MODEL_UNREADABLE 300

// Model: damaged, of another network or of a newer format.
#define JRS_E_MODEL_INVALID 301

// Model: not signed, or not with the key that was given.
#define JRS_E_MODEL_SIGNATURE 302

// Input: the volumes, contours or points cannot be registered (no CT, no overlap, contours off the slices).
#define JRS_E_INPUT 400

// Device: it is not there, or was lost. There is no fall-back to another one.
#define JRS_E_DEVICE 500

// Memory: the call needs more than the limit, or than the system has; nothing was begun.
#define JRS_E_MEMORY 600

// Cancelled by the token or by the progress callback.
#define JRS_E_CANCELLED 700

// File: a result cannot be written.
#define JRS_E_FILE 800

// Internal: a defect of libjrs. Please report the message.
#define JRS_E_INTERNAL 900

// Signed 16-bit integers: CT as scanners store it.
#define JRS_INT16 1

// 32-bit floats.
#define JRS_FLOAT32 2

// Unsigned 8-bit integers: label maps, 0 is background.
#define JRS_UINT8 3

// The CPU.
#define JRS_DEVICE_CPU 0

// A CUDA GPU; JRS_E_DEVICE where the build or the machine has none.
#define JRS_DEVICE_CUDA 1

// Single precision, on any processor.
#define JRS_PRECISION_F32 0

// The network in bfloat16 with sums in single precision: two to three times faster, displacements differ by up to some
// tenths of a millimetre. JRS_E_UNSUPPORTED where the processor has no matrix unit (AMX) or the GPU no tensor cores for it.
#define JRS_PRECISION_BF16 1

// The network in TF32 with sums in single precision, on GPUs with tensor cores for it; JRS_E_UNSUPPORTED elsewhere.
#define JRS_PRECISION_TF32 2

// Log level: something failed.
#define JRS_LOG_ERROR 1

// Log level: a result needs a look.
#define JRS_LOG_WARNING 2

// Log level: what is being done.
#define JRS_LOG_INFO 3

// Prealignment is prealign, or the identity where that is NULL.
#define JRS_PREALIGN_GIVEN 0

// Prealignment is found: six degrees of freedom, by the bones. prealign must be NULL.
#define JRS_PREALIGN_RIGID 1

// Prealignment is found: twelve degrees of freedom. prealign must be NULL.
#define JRS_PREALIGN_AFFINE 2

// Flag of a carried point: the inverse came within 0.001 mm.
#define JRS_POINT_FOUND 1

// Flag of a carried point: the deformation folds there, so there are several answers.
#define JRS_POINT_FOLDED 2

// Flag of a carried point: outside the fixed scan, where the deformation of its edge goes on.
#define JRS_POINT_OUTSIDE 4

// Verdict: no figure exceeds a limit.
#define JRS_QA_OK 0

// Verdict: a person should look before use.
#define JRS_QA_REVIEW 1

// Verdict: not to be used.
#define JRS_QA_REJECT 2

// Displacement as MetaImage (.mha), LPS vectors: ITK, SimpleITK, elastix, 3D Slicer.
#define JRS_FILE_DVF_MHA 1

// Displacement as NRRD (.nrrd), LPS vectors: ITK, 3D Slicer.
#define JRS_FILE_DVF_NRRD 2

// Displacement as 5-D NIfTI (.nii, .nii.gz), intent 1006, RAS vectors: ITK and 3D Slicer convert.
#define JRS_FILE_DVF_NIFTI 3

// Displacement as 5-D NIfTI, intent 1007, LPS vectors: ANTs.
#define JRS_FILE_DVF_NIFTI_ANTS 4

// The warped scan as NIfTI, int16.
#define JRS_FILE_WARPED_NIFTI 5

// The carried labels as NIfTI, uint8.
#define JRS_FILE_LABELS_NIFTI 6

// A token by which any thread may stop a running call. One token may serve several calls.
typedef struct jrs_cancel jrs_cancel;

// A trained network. Never changes; threads and sessions may share it.
typedef struct jrs_model jrs_model;

// A finished registration. Never changes; threads may read it at the same time. It stays valid when its session and
// model are freed.
typedef struct jrs_result jrs_result;

// Registers: owns a pool of threads and serves one call at a time (JRS_E_BUSY otherwise). Several sessions may run
// side by side, also with one model.
typedef struct jrs_session jrs_session;

// Voxels in the caller's memory, borrowed and only read during a call. Native byte order.
//
// Voxel (i, j, k) is at data + i strides[0] + j strides[1] + k strides[2] bytes, its centre at
// origin + direction (spacing * (i, j, k)) in LPS mm (x to the patient's left, y to the back, z to the head).
typedef struct jrs_volume {
    // sizeof(jrs_volume).
    size_t struct_size;
    // Voxel (0, 0, 0).
    const void *data;
    // Bytes that may be read from data on: what strides and dims reach is checked against it.
    uint64_t data_bytes;
    // JRS_INT16 or JRS_FLOAT32 for scans, JRS_UINT8 for label maps.
    uint32_t dtype;
    // Must be 0.
    uint32_t reserved;
    // Number of voxels along i, j, k.
    uint64_t dims[3];
    // Bytes from a voxel to the next along i, j, k; all 0 for packed voxels with i fastest. Not negative.
    int64_t strides[3];
    // mm between voxel centres along i, j, k.
    double spacing[3];
    // Centre of voxel (0, 0, 0), LPS mm.
    double origin[3];
    // 3x3, row by row; COLUMN a is the unit vector of index axis a in LPS (as in ITK). Orthonormal and right-handed.
    double direction[9];
    // HU = slope * stored + intercept.
    double slope;
    // See slope.
    double intercept;
} jrs_volume;

// Closed planar polygons in LPS mm. All points stand one after another; polygon p takes the next polygon_points[p]
// of them and belongs to structure polygon_labels[p]. The first point of a polygon is not repeated at its end.
//
// As input, polygons lie on slices of the moving scan (planes of its third index). Within a slice and a structure
// the even-odd rule holds: a polygon inside another is a hole (as DICOM's CLOSED_PLANAR_XOR and nested loops mean it).
// As output, they lie on slices of the fixed scan, outlines counter-clockwise in (i, j) and holes clockwise.
typedef struct jrs_contours {
    // sizeof(jrs_contours).
    size_t struct_size;
    // x, y, z of every point: 3 * point_count numbers.
    const double *points;
    // Number of points.
    uint64_t point_count;
    // Number of points of every polygon.
    const uint64_t *polygon_points;
    // Structure of every polygon, 1 to 255.
    const uint8_t *polygon_labels;
    // Number of polygons.
    uint64_t polygon_count;
    // Output only, NULL as input: 1 where the polygon is a hole.
    const uint8_t *polygon_is_hole;
    // Output only, NULL as input: slice of the fixed scan.
    const uint32_t *polygon_slices;
} jrs_contours;

// Called on the thread that made the call, after every tile, step and stage; other than 0 cancels. stage is only
// valid during the call.
typedef int32_t (*jrs_progress_fn)(void *user, const char *stage, uint64_t done, uint64_t total);

// Called on the thread that made the call. message is only valid during the call and names no patient.
typedef void (*jrs_log_fn)(void *user, int32_t level, const char *message);

// How a session works. Initialise with jrs_session_options_init.
typedef struct jrs_session_options {
    // sizeof(jrs_session_options).
    size_t struct_size;
    // Threads of the session's own pool; 0 for one per core that the process may use.
    uint32_t threads;
    // JRS_DEVICE_*.
    uint32_t device;
    // JRS_PRECISION_*.
    uint32_t precision;
    // 1 (default): the same input gives the same bytes on the same build and kind of CPU, for any number of threads, or
    // the session is refused. 0 leaves it open.
    uint32_t deterministic;
    // Most memory a call may use at one time, bytes; 0 for no limit. A call that needs more is cut into tiles, and
    // refused with JRS_E_MEMORY before it begins where that is not enough. Results count, what the caller lends does not.
    uint64_t max_host_bytes;
    // The same on the device, for the network; not used by the CPU.
    uint64_t max_device_bytes;
    // Progress, or NULL.
    jrs_progress_fn progress;
    // First argument of progress.
    void *progress_user;
    // Log lines, or NULL for silence.
    jrs_log_fn log;
    // First argument of log.
    void *log_user;
    // Which of the machine's GPUs, as the driver counts them; 0 for the CPU.
    uint32_t device_number;
    // Must be 0.
    uint32_t reserved;
} jrs_session_options;

// Limits of the QA verdict: beyond _review the verdict is REVIEW, beyond _reject REJECT. Shares go from 0 to 1.
typedef struct jrs_qa_limits {
    // sizeof(jrs_qa_limits).
    size_t struct_size;
    // Share of folded voxels, in the body and in each structure.
    double folding_review;
    // The same, to reject.
    double folding_reject;
    // 95th percentile of the inverse-consistency error, mm.
    double inverse_consistency_p95_review_mm;
    // The same, to reject.
    double inverse_consistency_p95_reject_mm;
    // Lowest and highest volume of a structure after, divided by before.
    double volume_ratio_review[2];
    // The same, to reject.
    double volume_ratio_reject[2];
    // How far the NCC may fall through the deformation.
    double ncc_drop_review;
    // The same, to reject.
    double ncc_drop_reject;
    // Share of the body that is sent outside the moving scan.
    double out_of_field_review;
    // The same, to reject.
    double out_of_field_reject;
    // Share of the body displaced beyond the network's capture range; never rejects by itself.
    double beyond_capture_range_review;
} jrs_qa_limits;

// What is registered, and how. Everything it points to is only read during the call.
typedef struct jrs_register_input {
    // sizeof(jrs_register_input).
    size_t struct_size;
    // Today's scan, on whose grid the result is given.
    const struct jrs_volume *fixed;
    // The planning scan.
    const struct jrs_volume *moving;
    // Label map on the moving scan's grid to be carried over, or NULL.
    const struct jrs_volume *labels;
    // Known label map on the fixed scan's grid to score the result with, or NULL.
    const struct jrs_volume *reference_labels;
    // Contours on the moving scan to be carried over, or NULL.
    const struct jrs_contours *contours;
    // 4x4, row by row: maps a FIXED point (x, y, z, 1) in LPS mm to the MOVING point that shows the same anatomy
    // before the deformation (as ITK and elastix do). Last row 0 0 0 1. Or NULL.
    const double *prealign;
    // Limits of the QA verdict; NULL for the defaults.
    const struct jrs_qa_limits *limits;
    // JRS_PREALIGN_*.
    uint32_t prealign_mode;
    // 1 (default): also registers moving to fixed, for the inverse-consistency error, where the patient is; takes up to twice the time.
    uint32_t both_directions;
    // Gradient steps of refinement after the network (or without a model, instead of it); 0 for none.
    uint32_t refine_steps;
    // Must be 0.
    uint32_t reserved;
    // Edge of the voxels on which refinement works, mm.
    double refine_spacing_mm;
    // Most memory of one tile of the network, bytes; 0 for no other limit than the session's. A call can be cancelled
    // after every tile, so smaller tiles stop sooner and take longer in all.
    uint64_t max_tile_bytes;
} jrs_register_input;

// What a call will take. Set struct_size before the call.
typedef struct jrs_estimate_result {
    // sizeof(jrs_estimate_result).
    size_t struct_size;
    // Most memory in use at one time with the session's limits, bytes: what a call adds to the process.
    uint64_t host_bytes;
    // The least limit with which the call can be done, in small tiles.
    uint64_t least_host_bytes;
    // Runs of the network in one direction.
    uint64_t tiles;
    // Seconds, roughly: the work by the pace of the session's earlier calls, or, before there were any that say enough, of
    // small registrations that are timed now. How busy the machine will be is not foreseen.
    double seconds;
    // As host_bytes, in the memory of the device; 0 for the CPU.
    uint64_t device_bytes;
    // As least_host_bytes, in the memory of the device; 0 for the CPU.
    uint64_t least_device_bytes;
} jrs_estimate_result;

// The judgement of a result. Shares go from 0 to 1, lengths are mm; NaN is "not measured". Set struct_size before the
// call. "Before" is the prealignment alone, "body" the torso of the fixed scan.
typedef struct jrs_qa {
    // sizeof(jrs_qa).
    size_t struct_size;
    // JRS_QA_*.
    uint32_t verdict;
    // Number of reasons in the JSON's "reasons".
    uint32_t reason_count;
    // Number of structures, see jrs_result_structure_qa.
    uint64_t structure_count;
    // Mean length of the displacement in the body, without the prealignment.
    double displacement_mean_mm;
    // Its 95th percentile.
    double displacement_p95_mm;
    // Its maximum.
    double displacement_max_mm;
    // Share of the body displaced beyond what the network can see.
    double beyond_capture_range;
    // Share of the body that folds (Jacobian determinant not positive).
    double folded;
    // Least Jacobian determinant in the body.
    double jacobian_min;
    // Largest Jacobian determinant in the body.
    double jacobian_max;
    // Standard deviation of the Jacobian determinant in the body.
    double jacobian_std;
    // Mean inverse-consistency error.
    double inverse_consistency_mean_mm;
    // Its 95th percentile.
    double inverse_consistency_p95_mm;
    // Correlation of the scans in the body, before.
    double ncc_before;
    // The same, after.
    double ncc_after;
    // Share of the body that is sent outside the moving scan.
    double out_of_field;
} jrs_qa;

// The judgement of one structure. DSC, MSD and HD95 need reference_labels. Set struct_size before the call.
typedef struct jrs_structure_qa {
    // sizeof(jrs_structure_qa).
    size_t struct_size;
    // The structure.
    uint32_t label;
    // Always 0.
    uint32_t reserved;
    // Volume after divided by before; 0 if the structure was lost.
    double volume_ratio;
    // Share of the structure that folds.
    double folded;
    // Dice coefficient with the reference, before.
    double dsc_before;
    // The same, after.
    double dsc_after;
    // Mean surface distance to the reference, mm, before.
    double msd_before_mm;
    // The same, after.
    double msd_after_mm;
    // 95th percentile of the surface distance, mm, before.
    double hd95_before_mm;
    // The same, after.
    double hd95_after_mm;
} jrs_structure_qa;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// JRS_ABI_VERSION of the library that is loaded; compare with the header's before any other call.
uint32_t jrs_abi_version(void);

// The library's version, for instance "0.1.0". Valid for ever; not to be freed.
const char *jrs_version_string(void);

// Why the last failing call on this thread failed; "" if none did. Valid until the next call on this thread that
// fails; not to be freed.
const char *jrs_last_error(void);

// Fills a volume with defaults: int16, packed, 1 mm, axes along LPS, slope 1.
//
// # Safety
// `volume` is NULL or valid for writing `struct_size` bytes.
int32_t jrs_volume_init(struct jrs_volume *volume, size_t struct_size);

// Fills contours with defaults: none.
//
// # Safety
// `contours` is NULL or valid for writing `struct_size` bytes.
int32_t jrs_contours_init(struct jrs_contours *contours, size_t struct_size);

// Reads a model file and checks every weight against its hash. With a public_key (32 bytes, Ed25519) the model must
// also carry the signature of that key; NULL asks for none. On success *model is a new handle.
//
// JRS_E_ARGUMENT, JRS_E_MODEL_UNREADABLE, JRS_E_MODEL_INVALID, JRS_E_MODEL_SIGNATURE.
//
// # Safety
// `path` is NULL or a NUL-terminated string; `public_key` is NULL or readable for 32 bytes; `model` is NULL or
// valid for a write.
int32_t jrs_model_load(const char *path,
                       const uint8_t *public_key,
                       struct jrs_model **model);

// The same from a file's content in memory, which is not needed after the call.
//
// # Safety
// As jrs_model_load; `bytes` is NULL or readable for `length` bytes.
int32_t jrs_model_load_memory(const void *bytes,
                              size_t length,
                              const uint8_t *public_key,
                              struct jrs_model **model);

// Ends a model; NULL does nothing. Results that were made with it stay.
//
// # Safety
// `model` is NULL or a handle that has not been freed and that no other thread uses any more.
void jrs_model_free(struct jrs_model *model);

// The model card as JSON: network, preprocessing, conventions, organs, training provenance, hash of every tensor.
//
// Writes text with its final NUL into buffer, and the bytes that takes into *needed. buffer = NULL with capacity = 0
// asks for the size only and succeeds. JRS_E_BUFFER_TOO_SMALL: *needed is written, the buffer is untouched.
//
// # Safety
// `model` is NULL or a live handle; `buffer` is NULL or writable for `capacity` bytes; `needed` is NULL or valid for
// a write.
int32_t jrs_model_card_json(const struct jrs_model *model,
                            char *buffer,
                            size_t capacity,
                            size_t *needed);

// SHA-256 of the model file as 64 hexadecimal digits: the model's identity in audit trails. As jrs_model_card_json.
//
// # Safety
// As jrs_model_card_json.
int32_t jrs_model_sha256(const struct jrs_model *model,
                         char *buffer,
                         size_t capacity,
                         size_t *needed);

// Fills the options with their defaults.
//
// # Safety
// `options` is NULL or valid for writing `struct_size` bytes.
int32_t jrs_session_options_init(struct jrs_session_options *options, size_t struct_size);

// A new session; options may be NULL.
//
// # Safety
// `options` is NULL or an initialised struct, whose callbacks can be called until the session is freed; `session` is
// NULL or valid for a write.
int32_t jrs_session_create(const struct jrs_session_options *options,
                           struct jrs_session **session);

// Ends a session and its threads; NULL does nothing. Its results stay valid.
//
// # Safety
// `session` is NULL or a handle that has not been freed and that no call uses any more.
void jrs_session_free(struct jrs_session *session);

// Why the last failing call of this session failed, from whatever thread. As jrs_model_card_json.
//
// # Safety
// `session` is NULL or a live handle; `buffer` is NULL or writable for `capacity` bytes; `needed` is NULL or valid for
// a write.
int32_t jrs_session_last_error(const struct jrs_session *session,
                               char *buffer,
                               size_t capacity,
                               size_t *needed);

// A new token, not set.
//
// # Safety
// `cancel` is NULL or valid for a write.
int32_t jrs_cancel_create(struct jrs_cancel **cancel);

// Asks all calls with this token to stop: they return JRS_E_CANCELLED after the tile they are in. Any thread may call
// it at any time until the token is freed; it does not wait.
//
// # Safety
// `cancel` is NULL (which does nothing) or a handle that has not been freed.
void jrs_cancel_request(const struct jrs_cancel *cancel);

// Makes a token usable again.
//
// # Safety
// As jrs_cancel_request.
void jrs_cancel_reset(const struct jrs_cancel *cancel);

// Ends a token; NULL does nothing. A call that still runs with it goes on and cannot be cancelled any more.
//
// # Safety
// `cancel` is NULL or a handle that has not been freed and that no other thread uses any more.
void jrs_cancel_free(struct jrs_cancel *cancel);

// Fills the limits with their defaults.
//
// # Safety
// `limits` is NULL or valid for writing `struct_size` bytes.
int32_t jrs_qa_limits_init(struct jrs_qa_limits *limits, size_t struct_size);

// Fills an input with its defaults.
//
// # Safety
// `input` is NULL or valid for writing `struct_size` bytes.
int32_t jrs_register_input_init(struct jrs_register_input *input, size_t struct_size);

// Registers. model may be NULL where refine_steps is not 0; cancel may be NULL. On success *result is a new handle.
//
// JRS_E_ARGUMENT, JRS_E_STRUCT_SIZE, JRS_E_BUSY, JRS_E_GEOMETRY, JRS_E_INPUT, JRS_E_DEVICE, JRS_E_MEMORY,
// JRS_E_CANCELLED.
//
// # Safety
// `session`, `model` and `cancel` are NULL or live handles; `input` is NULL or an initialised struct, and all it
// points to is as long as it says and does not change during the call; `result` is NULL or valid for a write.
int32_t jrs_register(struct jrs_session *session,
                     const struct jrs_model *model,
                     const struct jrs_register_input *input,
                     const struct jrs_cancel *cancel,
                     struct jrs_result **result);

// What jrs_register with the same arguments would take. Does not look at voxels.
//
// # Safety
// As jrs_register; `estimate` is NULL or valid for writing as many bytes as its struct_size says.
int32_t jrs_estimate(struct jrs_session *session,
                     const struct jrs_model *model,
                     const struct jrs_register_input *input,
                     struct jrs_estimate_result *estimate);

// Ends a result and every view of it; NULL does nothing.
//
// # Safety
// `result` is NULL or a handle that has not been freed and that no other thread uses any more.
void jrs_result_free(struct jrs_result *result);

// Number of voxels of the fixed scan, along i, j, k.
//
// # Safety
// `result` is NULL or a live handle; `dims` is NULL or valid for writing 3 numbers.
int32_t jrs_result_dims(const struct jrs_result *result, uint64_t *dims);

// The displacement, prealignment included, into the caller's buffer: for every voxel of the fixed scan (i fastest) its
// x, y, z component in mm, LPS. Pull-back: the fixed point p shows what the moving scan shows at p + u(p).
//
// capacity and *needed are numbers of floats. buffer = NULL with capacity = 0 asks for the number only and succeeds.
//
// # Safety
// `result` is NULL or a live handle; `buffer` is NULL or writable for `capacity` floats; `needed` is NULL or valid for
// a write.
int32_t jrs_result_dvf(const struct jrs_result *result,
                       float *buffer,
                       size_t capacity,
                       size_t *needed);

// The same without a copy, component by component: x, y and z each point to one float per voxel, i fastest, valid
// until jrs_result_free.
//
// # Safety
// `result` is NULL or a live handle; `x`, `y` and `z` are NULL or valid for a write.
int32_t jrs_result_dvf_view(const struct jrs_result *result,
                            const float **x,
                            const float **y,
                            const float **z);

// The moving scan on the fixed scan's grid, HU, one float per voxel, i fastest; valid until jrs_result_free. Where the
// deformation leaves the moving scan stands its minimum.
//
// # Safety
// `result` is NULL or a live handle; `voxels` is NULL or valid for a write.
int32_t jrs_result_warped_view(const struct jrs_result *result,
                               const float **voxels);

// The labels on the fixed scan's grid (of the label map, or else of the contours), one byte per voxel, i fastest; valid
// until jrs_result_free. JRS_E_INPUT if there were none.
//
// # Safety
// `result` is NULL or a live handle; `voxels` is NULL or valid for a write.
int32_t jrs_result_labels_view(const struct jrs_result *result,
                               const uint8_t **voxels);

// The contours on slices of the fixed scan, as a view that is valid until jrs_result_free. Set struct_size before the
// call. Without contours in the input there are no polygons.
//
// # Safety
// `result` is NULL or a live handle; `contours` is NULL or valid for writing as many bytes as its struct_size says.
int32_t jrs_result_contours_view(const struct jrs_result *result,
                                 struct jrs_contours *contours);

// The prealignment that was used: 4x4, row by row, fixed to moving points, LPS mm.
//
// # Safety
// `result` is NULL or a live handle; `matrix` is NULL or valid for writing 16 numbers.
int32_t jrs_result_prealign(const struct jrs_result *result, double *matrix);

// Carries points of the MOVING scan (a fiducial, the vertices of a mesh) over to the fixed scan: the inverse of the
// deformation, by fixed-point iteration. points and carried have 3 * count numbers, x, y, z in LPS mm.
//
// residuals (count numbers, mm) tells how far the carried point misses when it is sent back; flags (count numbers) are
// JRS_POINT_*. Both may be NULL. Look at points without JRS_POINT_FOUND or with JRS_POINT_FOLDED.
//
// # Safety
// `result` is NULL or a live handle; the arrays are NULL or as long as said.
int32_t jrs_result_carry_points(const struct jrs_result *result,
                                const double *points,
                                size_t count,
                                double *carried,
                                double *residuals,
                                uint32_t *flags);

// Maps points of the FIXED scan to the moving scan: p + u(p). NaN for points outside the fixed scan. Arrays as in
// jrs_result_carry_points.
//
// # Safety
// As jrs_result_carry_points.
int32_t jrs_result_map_points(const struct jrs_result *result,
                              const double *points,
                              size_t count,
                              double *mapped);

// The judgement.
//
// # Safety
// `result` is NULL or a live handle; `qa` is NULL or valid for writing as many bytes as its struct_size says.
int32_t jrs_result_qa(const struct jrs_result *result, struct jrs_qa *qa);

// The judgement of structure number index, from 0, by rising label.
//
// # Safety
// As jrs_result_qa.
int32_t jrs_result_structure_qa(const struct jrs_result *result, uint64_t index, struct jrs_structure_qa *qa);

// The judgement as JSON, with the reasons in words. As jrs_model_card_json.
//
// # Safety
// As jrs_model_card_json, for a result.
int32_t jrs_result_qa_json(const struct jrs_result *result, char *buffer, size_t capacity, size_t *needed);

// What exactly ran, as JSON for the audit trail: versions, hash of the model, device, precision, options, hash of every
// input, seconds, warnings. No patient data. As jrs_model_card_json.
//
// # Safety
// As jrs_model_card_json, for a result.
int32_t jrs_result_provenance_json(const struct jrs_result *result,
                                   char *buffer,
                                   size_t capacity,
                                   size_t *needed);

// Writes a part of a result; format is JRS_FILE_*. The file appears whole or not at all. NIfTI is compressed where the
// name ends in .gz.
//
// JRS_E_FILE; JRS_E_INPUT for labels where there are none.
//
// # Safety
// `result` is NULL or a live handle; `path` is NULL or a NUL-terminated string.
int32_t jrs_result_write(const struct jrs_result *result,
                         uint32_t format,
                         const char *path);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* JRS_H */

/* Whatever goes through memory asks nothing of the host: no environment variable, no file, no socket. The program stands in for the
 * C library's functions and refuses while it watches.
 *
 *     ./quiet model.safetensors
 */
#define _GNU_SOURCE
#include "scan.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int watching, asked;

static int refuse(const char *function, const char *what)
{
    if (!watching)
        return 0;
    fprintf(stderr, "the library calls %s(%s)\n", function, what);
    asked = 1;
    errno = EPERM;
    return 1;
}

char *getenv(const char *name)
{
    const size_t length = strlen(name);
    char **line;

    if (refuse("getenv", name))
        return NULL;
    for (line = environ; line && *line; line++)
        if (strncmp(*line, name, length) == 0 && (*line)[length] == '=')
            return *line + length + 1;
    return NULL;
}

static int open_at(const char *function, int folder, const char *path, int flags, va_list rest)
{
    const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;

    return refuse(function, path) ? -1 : (int)syscall(SYS_openat, folder, path, flags, mode);
}

#define OPEN(function)                                                    \
    int function(const char *path, int flags, ...)                        \
    {                                                                     \
        va_list rest;                                                     \
        int file;                                                         \
                                                                          \
        va_start(rest, flags);                                            \
        file = open_at(#function, AT_FDCWD, path, flags, rest);           \
        va_end(rest);                                                     \
        return file;                                                      \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function)                                                  \
    int function(int folder, const char *path, int flags, ...)            \
    {                                                                     \
        va_list rest;                                                     \
        int file;                                                         \
                                                                          \
        va_start(rest, flags);                                            \
        file = open_at(#function, folder, path, flags, rest);             \
        va_end(rest);                                                     \
        return file;                                                      \
    }
OPENAT(openat)
OPENAT(openat64)

int socket(int domain, int type, int protocol)
{
    return refuse("socket", "") ? -1 : (int)syscall(SYS_socket, domain, type, protocol);
}

int main(int argc, char **argv)
{
    const uint64_t dims[3] = {40, 36, 32};
    jrs_model *model = NULL;
    jrs_session *session = NULL;
    jrs_session_options options;
    jrs_result *result = NULL;
    jrs_register_input input;
    jrs_estimate_result estimate;
    jrs_volume fixed, moving;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    char *bytes;
    long length;

    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        return 2;
    length = ftell(file);
    rewind(file);
    bytes = malloc((size_t)length);
    if (bytes == NULL || fread(bytes, 1, (size_t)length, file) != (size_t)length)
        return 2;
    fclose(file);

    watching = 1;
    check(jrs_model_load_memory(bytes, (size_t)length, NULL, &model));
    check(jrs_session_options_init(&options, sizeof options));
    options.threads = 2; /* how many there are, only the system could tell */
    check(jrs_session_create(&options, &session));
    fixed = scan(dims, 4.0, 3.0);
    moving = scan(dims, 4.0, 0.0);
    check(jrs_register_input_init(&input, sizeof input));
    input.fixed = &fixed;
    input.moving = &moving;
    input.both_directions = 1;
    input.refine_steps = 2;
    estimate.struct_size = sizeof estimate;
    check(jrs_estimate(session, model, &input, &estimate));
    check(jrs_register(session, model, &input, NULL, &result));
    jrs_result_free(result);
    jrs_session_free(session);
    jrs_model_free(model);
    watching = 0;

    if (getenv("PATH") == NULL) {
        fputs("the stand-ins do not work\n", stderr);
        return 2;
    }
    free((void *)fixed.data);
    free((void *)moving.data);
    free(bytes);
    return asked;
}

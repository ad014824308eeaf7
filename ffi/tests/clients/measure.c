/* Measures on this machine: seconds from process start to a loaded model and to the first result, and the memory that
 * jrs_register adds to the process beside what jrs_estimate said. Linux.
 *
 *     ./measure model.safetensors NX NY NZ SPACING_MM BOTH_DIRECTIONS THREADS MAX_TILE_BYTES PRECISION
 */
#define _POSIX_C_SOURCE 200809L
#include "scan.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A line of /proc/self/status, bytes. */
static double status(const char *key)
{
    char line[256];
    double kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");

    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            kilobytes = atof(line + strlen(key) + 1);
    if (file)
        fclose(file);
    return 1024 * kilobytes;
}

int main(int argc, char **argv)
{
    const double start = now();
    jrs_model *model = NULL;
    jrs_session *session = NULL;
    jrs_session_options options;
    jrs_result *result = NULL;
    jrs_register_input input;
    jrs_estimate_result estimate;
    jrs_volume fixed, moving;
    uint64_t dims[3];
    double loaded, prepared, registered, before, peak;
    FILE *file;

    if (argc != 10)
        return 2;
    check(jrs_model_load(argv[1], NULL, &model));
    check(jrs_session_options_init(&options, sizeof options));
    options.threads = (uint32_t)atoi(argv[7]);
    options.precision = (uint32_t)atoi(argv[9]);
    check(jrs_session_create(&options, &session));
    loaded = now();
    dims[0] = strtoull(argv[2], NULL, 10);
    dims[1] = strtoull(argv[3], NULL, 10);
    dims[2] = strtoull(argv[4], NULL, 10);
    fixed = scan(dims, atof(argv[5]), 3.0);
    moving = scan(dims, atof(argv[5]), 0.0);
    check(jrs_register_input_init(&input, sizeof input));
    input.fixed = &fixed;
    input.moving = &moving;
    input.both_directions = (uint32_t)atoi(argv[6]);
    input.max_tile_bytes = strtoull(argv[8], NULL, 10);
    estimate.struct_size = sizeof estimate;
    check(jrs_estimate(session, model, &input, &estimate));
    malloc_trim(0); /* what the allocator kept of the estimate would be used again and not counted */
    before = status("VmRSS");
    file = fopen("/proc/self/clear_refs", "w"); /* "5" sets the peak back to what is in use */
    if (file) {
        fputs("5", file);
        fclose(file);
    }
    prepared = now();
    check(jrs_register(session, model, &input, NULL, &result));
    registered = now();
    peak = status("VmHWM") - before;
    printf("{\"load_s\": %.3f, \"register_s\": %.3f, \"estimated_s\": %.3f, \"peak_bytes\": %.0f, "
           "\"estimated_bytes\": %.0f, \"least_bytes\": %.0f, \"tiles\": %d}\n",
           loaded - start, registered - prepared, estimate.seconds, peak, (double)estimate.host_bytes,
           (double)estimate.least_host_bytes, (int)estimate.tiles);
    jrs_result_free(result);
    jrs_session_free(session);
    jrs_model_free(model);
    free((void *)fixed.data);
    free((void *)moving.data);
    return 0;
}

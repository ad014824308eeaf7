/* Registers two raw volumes and carries contours over, in C99.
 *
 *     cc -std=c99 register.c $(pkg-config --cflags --libs jrs) -o register
 *     ./register model.safetensors PAIR OUT
 *
 * PAIR holds for each of fixed and moving: NAME.raw (int16, i fastest) and NAME.txt (dims, spacing, origin, direction
 * as 18 numbers), and labels.raw (uint8, on the moving grid) and contours.txt (one polygon per line: label, number
 * of points, then x y z of each, LPS mm, on the moving slices).
 */
#include <jrs.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int32_t code)
{
    if (code != JRS_OK) {
        fprintf(stderr, "libjrs says %d: %s\n", (int)code, jrs_last_error());
        exit(1);
    }
}

static FILE *open_in(const char *folder, const char *name, const char *mode)
{
    char path[4096];
    FILE *file;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, mode);
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    return file;
}

static void *allocate(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);

    if (memory == NULL) {
        fputs("out of memory\n", stderr);
        exit(1);
    }
    return memory;
}

/* Geometry from NAME.txt, voxels from RAW; free the data. */
static jrs_volume read_volume(const char *folder, const char *name, const char *raw, uint32_t dtype, size_t width)
{
    jrs_volume volume;
    unsigned long long dims[3];
    char file_name[256];
    void *data;
    FILE *file;
    int a, numbers = 0;

    check(jrs_volume_init(&volume, sizeof volume));
    snprintf(file_name, sizeof file_name, "%s.txt", name);
    file = open_in(folder, file_name, "r");
    for (a = 0; a < 3; a++)
        numbers += fscanf(file, "%llu", &dims[a]);
    for (a = 0; a < 3; a++)
        numbers += fscanf(file, "%lf", &volume.spacing[a]);
    for (a = 0; a < 3; a++)
        numbers += fscanf(file, "%lf", &volume.origin[a]);
    for (a = 0; a < 9; a++)
        numbers += fscanf(file, "%lf", &volume.direction[a]);
    fclose(file);
    if (numbers != 18) {
        fprintf(stderr, "%s/%s: 18 numbers are needed\n", folder, file_name);
        exit(1);
    }
    for (a = 0; a < 3; a++)
        volume.dims[a] = dims[a];
    volume.dtype = dtype;
    volume.data_bytes = (uint64_t)width * dims[0] * dims[1] * dims[2];
    data = allocate((size_t)volume.data_bytes);
    file = open_in(folder, raw, "rb");
    if (fread(data, 1, (size_t)volume.data_bytes, file) != volume.data_bytes) {
        fprintf(stderr, "%s/%s is too short\n", folder, raw);
        exit(1);
    }
    fclose(file);
    volume.data = data;
    return volume;
}

/* Polygons in the arrays that jrs_contours points to. */
struct polygons {
    double *points;
    uint64_t *counts;
    uint8_t *labels;
};

static jrs_contours read_contours(const char *folder, struct polygons *own)
{
    jrs_contours contours;
    unsigned label;
    unsigned long long count, n;
    FILE *file = open_in(folder, "contours.txt", "r");

    check(jrs_contours_init(&contours, sizeof contours));
    memset(own, 0, sizeof *own);
    while (fscanf(file, "%u %llu", &label, &count) == 2) {
        const size_t polygons = (size_t)contours.polygon_count + 1;
        const size_t points = (size_t)(contours.point_count + count);

        own->points = realloc(own->points, 3 * points * sizeof *own->points);
        own->counts = realloc(own->counts, polygons * sizeof *own->counts);
        own->labels = realloc(own->labels, polygons);
        if (own->points == NULL || own->counts == NULL || own->labels == NULL)
            exit(1);
        for (n = 0; n < 3 * count; n++)
            if (fscanf(file, "%lf", &own->points[3 * contours.point_count + n]) != 1) {
                fprintf(stderr, "%s/contours.txt ends within a polygon\n", folder);
                exit(1);
            }
        own->counts[polygons - 1] = count;
        own->labels[polygons - 1] = (uint8_t)label;
        contours.polygon_count = polygons;
        contours.point_count = points;
    }
    fclose(file);
    contours.points = own->points;
    contours.polygon_points = own->counts;
    contours.polygon_labels = own->labels;
    return contours;
}

static void write_contours(const jrs_result *result, const char *folder)
{
    jrs_contours found;
    uint64_t polygon, n;
    const double *point;
    FILE *file = open_in(folder, "contours.txt", "w");

    check(jrs_contours_init(&found, sizeof found));
    check(jrs_result_contours_view(result, &found));
    point = found.points;
    for (polygon = 0; polygon < found.polygon_count; polygon++) {
        fprintf(file, "%u %llu", (unsigned)found.polygon_labels[polygon],
                (unsigned long long)found.polygon_points[polygon]);
        for (n = 0; n < found.polygon_points[polygon]; n++, point += 3)
            fprintf(file, " %.3f %.3f %.3f", point[0], point[1], point[2]);
        fputc('\n', file);
    }
    fclose(file);
    printf("%llu polygons carried over\n", (unsigned long long)found.polygon_count);
}

static void write_part(const jrs_result *result, uint32_t format, const char *folder, const char *name)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    check(jrs_result_write(result, format, path));
}

typedef int32_t (*get_text)(const jrs_result *, char *, size_t, size_t *);

static void write_text(const jrs_result *result, get_text get, const char *folder, const char *name)
{
    size_t needed = 0;
    char *text;
    FILE *file;

    check(get(result, NULL, 0, &needed));
    text = allocate(needed);
    check(get(result, text, needed, &needed));
    file = open_in(folder, name, "wb");
    fwrite(text, 1, needed - 1, file);
    fclose(file);
    free(text);
}

static int32_t on_progress(void *user, const char *stage, uint64_t done, uint64_t total)
{
    (void)user;
    printf("%s %llu/%llu\n", stage, (unsigned long long)done, (unsigned long long)total);
    return 0; /* anything else cancels */
}

static void on_log(void *user, int32_t level, const char *message)
{
    (void)user;
    printf("[%d] %s\n", (int)level, message);
}

int main(int argc, char **argv)
{
    jrs_model *model = NULL;
    jrs_session *session = NULL;
    jrs_result *result = NULL;
    jrs_session_options options;
    jrs_register_input input;
    jrs_volume fixed, moving, labels;
    jrs_contours contours;
    struct polygons own;
    jrs_estimate_result estimate;
    jrs_qa qa;
    const char *const verdicts[] = {"OK", "REVIEW", "REJECT"};

    if (argc != 4) {
        fprintf(stderr, "usage: %s MODEL PAIR OUT\n", argv[0]);
        return 2;
    }
    if (jrs_abi_version() != JRS_ABI_VERSION) {
        fprintf(stderr, "this program was built for ABI %d, the library has %u\n", JRS_ABI_VERSION,
                (unsigned)jrs_abi_version());
        return 1;
    }
    check(jrs_model_load(argv[1], NULL, &model));
    check(jrs_session_options_init(&options, sizeof options));
    options.progress = on_progress;
    options.log = on_log;
    check(jrs_session_create(&options, &session));

    fixed = read_volume(argv[2], "fixed", "fixed.raw", JRS_INT16, 2);
    moving = read_volume(argv[2], "moving", "moving.raw", JRS_INT16, 2);
    labels = read_volume(argv[2], "moving", "labels.raw", JRS_UINT8, 1);
    contours = read_contours(argv[2], &own);

    check(jrs_register_input_init(&input, sizeof input));
    input.fixed = &fixed;
    input.moving = &moving;
    input.labels = &labels;
    input.contours = &contours;
    input.prealign_mode = JRS_PREALIGN_RIGID;

    estimate.struct_size = sizeof estimate;
    check(jrs_estimate(session, model, &input, &estimate));
    printf("estimate: %.0f MB, %.1f s\n", (double)estimate.host_bytes / 1e6, estimate.seconds);
    check(jrs_register(session, model, &input, NULL, &result));

    qa.struct_size = sizeof qa;
    check(jrs_result_qa(result, &qa));
    printf("verdict: %s, NCC %.4f before and %.4f after\n", verdicts[qa.verdict], qa.ncc_before, qa.ncc_after);
    write_part(result, JRS_FILE_DVF_MHA, argv[3], "dvf.mha");
    write_part(result, JRS_FILE_DVF_NIFTI, argv[3], "dvf.nii.gz");
    write_part(result, JRS_FILE_DVF_NIFTI_ANTS, argv[3], "dvf-ants.nii.gz");
    write_part(result, JRS_FILE_WARPED_NIFTI, argv[3], "warped.nii.gz");
    write_part(result, JRS_FILE_LABELS_NIFTI, argv[3], "labels.nii.gz");
    write_text(result, jrs_result_qa_json, argv[3], "qa.json");
    write_text(result, jrs_result_provenance_json, argv[3], "provenance.json");
    write_contours(result, argv[3]);

    jrs_result_free(result);
    jrs_session_free(session);
    jrs_model_free(model);
    free(own.points);
    free(own.counts);
    free(own.labels);
    free((void *)labels.data);
    free((void *)moving.data);
    free((void *)fixed.data);
    return 0;
}

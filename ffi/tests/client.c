/* A host in C99: the test's client and the example of how to use the library.
 *
 *     cc -std=c99 client.c -ljrs && ./a.out model.safetensors
 */
#include <jrs.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "line %d: %s; last error: %s\n", __LINE__, #condition, jrs_last_error()); \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

static void describe(const jrs_model *model)
{
    size_t needed = 0;
    char *text;
    char tiny[4] = {'x', 'x', 'x', 'x'};

    CHECK(jrs_model_manifest_json(model, NULL, 0, &needed) == JRS_OK);
    CHECK(needed > 100);
    CHECK(jrs_model_manifest_json(model, tiny, sizeof tiny, &needed) == JRS_E_BUFFER_TOO_SMALL);
    CHECK(tiny[0] == 'x' && tiny[3] == 'x');
    text = malloc(needed);
    CHECK(text != NULL);
    CHECK(jrs_model_manifest_json(model, text, needed, &needed) == JRS_OK);
    CHECK(strlen(text) + 1 == needed);
    puts(text);
    free(text);
}

static void load_from_memory(const char *path)
{
    jrs_model *model = NULL, *untouched = NULL;
    FILE *file = fopen(path, "rb");
    long length;
    unsigned char *bytes;

    CHECK(file != NULL);
    CHECK(fseek(file, 0, SEEK_END) == 0);
    length = ftell(file);
    CHECK(length > 0);
    rewind(file);
    bytes = malloc((size_t)length);
    CHECK(bytes != NULL && fread(bytes, 1, (size_t)length, file) == (size_t)length);
    fclose(file);

    CHECK(jrs_model_load_memory(bytes, (size_t)length, &model) == JRS_OK);
    jrs_model_free(model);

    /* A flipped bit in the last weight and a truncated file are both refused. */
    bytes[length - 1] ^= 1;
    CHECK(jrs_model_load_memory(bytes, (size_t)length, &untouched) == JRS_E_MODEL_INVALID);
    bytes[length - 1] ^= 1;
    CHECK(jrs_model_load_memory(bytes, (size_t)length - 1, &untouched) == JRS_E_MODEL_INVALID);
    CHECK(jrs_model_load_memory(bytes, 0, &untouched) == JRS_E_MODEL_INVALID);
    CHECK(untouched == NULL);
    free(bytes);
}

static void misuse(const jrs_model *model)
{
    jrs_model *untouched = NULL;
    size_t needed = 7;
    const char not_utf8[] = {(char)0xff, 'a', 0};

    CHECK(jrs_model_load(NULL, &untouched) == JRS_E_ARGUMENT);
    CHECK(strstr(jrs_last_error(), "path") != NULL);
    CHECK(jrs_model_load("model", NULL) == JRS_E_ARGUMENT);
    CHECK(jrs_model_load(not_utf8, &untouched) == JRS_E_ARGUMENT);
    CHECK(jrs_model_load("/no/such/model.safetensors", &untouched) == JRS_E_MODEL_UNREADABLE);
    CHECK(strstr(jrs_last_error(), "/no/such/model.safetensors") != NULL);
    CHECK(jrs_model_load_memory(NULL, 3, &untouched) == JRS_E_ARGUMENT);
    CHECK(jrs_model_manifest_json(NULL, NULL, 0, &needed) == JRS_E_ARGUMENT);
    CHECK(jrs_model_manifest_json(model, NULL, 5, &needed) == JRS_E_ARGUMENT);
    CHECK(jrs_model_manifest_json(model, NULL, 0, NULL) == JRS_E_ARGUMENT);
    CHECK(untouched == NULL && needed == 7);
    jrs_model_free(NULL);
}

int main(int argc, char **argv)
{
    jrs_model *model = NULL;

    CHECK(argc == 2);
    CHECK(jrs_abi_version() == JRS_ABI_VERSION);
    CHECK(strlen(jrs_version_string()) >= 5);
    CHECK(strcmp(jrs_last_error(), "") == 0);

    CHECK(jrs_model_load(argv[1], &model) == JRS_OK);
    describe(model);
    misuse(model);
    load_from_memory(argv[1]);
    jrs_model_free(model);
    return 0;
}

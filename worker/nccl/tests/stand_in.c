/* Stands for libcuda.so.1 and libnccl.so.2 in tests, both in one file: ranks are processes of one machine, "device memory" is this
 * process's own, and what ranks say to each other are files in a folder whose path is the group's identity. As the libraries do,
 * calls begin things and return; a rank that is gone is waited for until abort. FAKE_NCCL_VERSION is the version it claims. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdint.h>

enum { NOT_READY = 600, IN_PROGRESS = 7, ARGUMENT = 4 };
enum { UINT8 = 1, INT32 = 2, INT64 = 4, SUM = 0, MAX = 2 };

/* --- CUDA */
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < 2 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return 0; }
static _Thread_local void *current;
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 101 ? "invalid device ordinal" : "an error"; return 0; }
int cuMemAlloc_v2(uintptr_t *address, size_t bytes) { *address = (uintptr_t)malloc(bytes); return current ? 0 : 201; }
int cuMemFree_v2(uintptr_t address) { free((void *)address); return current ? 0 : 201; }

struct operation { int kind, type, how, root; const void *from; void *to; size_t count; };
struct communicator { char folder[100]; int rank, size, asked, done, aborted; struct operation waiting[64]; void *stream; };
struct stream { struct communicator *comm; };

static size_t width(int type) { return type == INT64 ? 8 : type == INT32 ? 4 : 1; }

static void say(struct communicator *comm, int number, const void *bytes, size_t length) {
    char name[200], new[210];
    snprintf(name, sizeof name, "%s/%d.%d", comm->folder, number, comm->rank);
    snprintf(new, sizeof new, "%s.new", name);
    FILE *file = fopen(new, "wb");
    fwrite(bytes, 1, length, file);
    fclose(file);
    rename(new, name);
}

static int heard(struct communicator *comm, int number, int rank, void *bytes, size_t length) {
    char name[200];
    snprintf(name, sizeof name, "%s/%d.%d", comm->folder, number, rank);
    FILE *file = fopen(name, "rb");
    if (!file) return 0;
    size_t got = bytes ? fread(bytes, 1, length, file) : length;
    fclose(file);
    return got == length;
}

/* Whether everything asked for is done. */
static int advance(struct communicator *comm) {
    for (; comm->done < comm->asked && !comm->aborted; comm->done++) {
        struct operation *op = &comm->waiting[comm->done % 64];
        size_t length = op->count * width(op->type);
        char *part = malloc(length);
        for (int rank = 0; rank < comm->size; rank++)
            if (!heard(comm, comm->done + 1, rank, NULL, length)) { free(part); return 0; }
        for (int rank = 0; rank < comm->size; rank++) {
            heard(comm, comm->done + 1, rank, part, length);
            if (op->kind == 'g') memcpy((char *)op->to + rank * length, part, length);
            if (op->kind == 'b' && rank == op->root) memcpy(op->to, part, length);
            if (op->kind == 'r')
                for (size_t i = 0; i < op->count; i++) {
                    if (op->type == INT64) {
                        int64_t *to = (int64_t *)op->to + i, from = ((int64_t *)part)[i];
                        *to = rank == 0 ? from : *to + from;
                    } else {
                        int32_t *to = (int32_t *)op->to + i, from = ((int32_t *)part)[i];
                        *to = rank == 0 || from > *to ? from : *to;
                    }
                }
        }
        free(part);
    }
    return 1;
}

int cuStreamCreate(void **stream, unsigned flags) { *stream = calloc(1, sizeof(struct stream)); return flags == 1 && current ? 0 : 1; }
int cuStreamDestroy_v2(void *stream) { free(stream); return 0; }
int cuStreamQuery(void *stream) { struct stream *s = stream; return !s->comm || advance(s->comm) ? 0 : NOT_READY; }
int cuStreamSynchronize(void *stream) { while (cuStreamQuery(stream)) usleep(100); return current ? 0 : 201; }
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *stream) { memcpy((void *)to, from, bytes); return stream ? 0 : 1; }
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *stream) { memcpy(to, (void *)from, bytes); return stream ? 0 : 1; }

/* --- NCCL */
struct identity { char folder[128]; };
struct config { size_t size; unsigned magic, version; int blocking, cga, min, max; const char *net; int split; };

int ncclGetVersion(int *version) {
    const char *claimed = getenv("FAKE_NCCL_VERSION");
    *version = claimed ? atoi(claimed) : 22203;
    return 0;
}
int ncclGetUniqueId(struct identity *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->folder, 100, "%s/group-XXXXXX", getenv("FAKE_NCCL_FOLDER"));
    return mkdtemp(id->folder) ? 0 : 2;
}
const char *ncclGetErrorString(int code) { return code == ARGUMENT ? "invalid argument" : "an error"; }
const char *ncclGetLastError(void *comm) { return comm ? "" : "what the log says"; }
int ncclCommInitRankConfig(void **out, int size, struct identity id, int rank, struct config *config) {
    if (config->magic != 0xcafebeef || config->size != sizeof *config || config->blocking != 0 || config->net) return ARGUMENT;
    struct communicator *comm = calloc(1, sizeof *comm);
    strncpy(comm->folder, id.folder, sizeof comm->folder - 1);
    comm->rank = rank;
    comm->size = size;
    say(comm, 0, "joined", 6);
    *out = comm;
    return IN_PROGRESS;
}
int ncclCommCount(struct communicator *comm, int *count) { *count = comm->size; return 0; }
int ncclCommGetAsyncError(struct communicator *comm, int *state) {
    int joined = 0;
    for (int rank = 0; rank < comm->size; rank++) joined += heard(comm, 0, rank, NULL, 6);
    *state = joined == comm->size ? 0 : IN_PROGRESS;
    return 0;
}
static int ask(struct communicator *comm, void *stream, struct operation op) {
    ((struct stream *)stream)->comm = comm;
    comm->waiting[comm->asked++ % 64] = op;
    say(comm, comm->asked, op.from, op.count * width(op.type));
    return IN_PROGRESS;
}
int ncclAllReduce(const void *from, void *to, size_t count, int type, int how, struct communicator *comm, void *stream) {
    if (!(type == INT64 && how == SUM) && !(type == INT32 && how == MAX)) return ARGUMENT;
    return ask(comm, stream, (struct operation){'r', type, how, 0, from, to, count});
}
int ncclAllGather(const void *from, void *to, size_t count, int type, struct communicator *comm, void *stream) {
    return type == UINT8 ? ask(comm, stream, (struct operation){'g', type, 0, 0, from, to, count}) : ARGUMENT;
}
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, struct communicator *comm, void *stream) {
    return type == UINT8 ? ask(comm, stream, (struct operation){'b', type, 0, root, from, to, count}) : ARGUMENT;
}
int ncclCommFinalize(struct communicator *comm) { return advance(comm) ? IN_PROGRESS : ARGUMENT; }
int ncclCommDestroy(struct communicator *comm) { comm->aborted = 1; return 0; }
int ncclCommAbort(struct communicator *comm) { comm->aborted = 1; return 0; }

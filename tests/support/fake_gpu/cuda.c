/* A test double of libcuda.so.1: the calls that our worker makes, on the memory of the host. No GPU, no CUDA.
 *
 * Work in a stream is done when somebody waits for it, or recorded while the stream is captured, so that a missing wait
 * shows. New memory is full of NaN, so that a missing reset shows. Behind every buffer is a guard, so that an overrun
 * shows. FAKE_CUDA_INIT is what cuInit returns; FAKE_CUDA_FAIL=NAME:N lets the N-th call of a function fail with 700. The
 * GPU is part of the chip; with FAKE_CUDA_CARD it is one on a card.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Callback)(void *);
typedef struct { int kind; void *to; const void *from; size_t size; Callback call; } Op;
typedef struct { Op *ops; size_t count, room; } Work;
typedef struct { Work queue, recorded; int capturing, spoilt; } Stream;
enum { COPY, CLEAR, CALL };
enum { GUARD = 64, NO_DEVICE = 100, ILLEGAL = 700, CAPTURE_SPOILT = 901 };

static long live;

static int fails(const char *name) {
  static int seen;
  const char *wanted = getenv("FAKE_CUDA_FAIL");
  size_t length = strlen(name);
  if (!wanted || strncmp(wanted, name, length) || wanted[length] != ':') return 0;
  return ++seen == atoi(wanted + length + 1) ? ILLEGAL : 0;
}

static void add(Work *work, Op op) {
  if (work->count == work->room) {
    work->room = work->room ? 2 * work->room : 64;
    work->ops = realloc(work->ops, work->room * sizeof(Op));
    if (!work->ops) abort();
  }
  work->ops[work->count++] = op;
}

static void put(Stream *stream, Op op) { add(stream->capturing ? &stream->recorded : &stream->queue, op); }

static void clear(Work *work) {
  free(work->ops);
  memset(work, 0, sizeof *work);
}

static void *allocate(size_t size) {
  char *block = NULL;
  if (posix_memalign((void **)&block, 256, 256 + size + GUARD)) abort();
  *(size_t *)block = size;
  memset(block + 256, 0xFF, size);
  memset(block + 256 + size, 0xA5, GUARD);
  live++;
  return block + 256;
}

static void release(void *address) {
  char *block = (char *)address - 256;
  size_t size = *(size_t *)block;
  for (int i = 0; i < GUARD; i++)
    if ((unsigned char)block[256 + size + i] != 0xA5) { fprintf(stderr, "fake CUDA: written past a buffer\n"); abort(); }
  free(block);
  live--;
}

long fake_live(void) { return live; }
int fake_enqueue(Stream *s, Callback call, void *data) {
  put(s, (Op){CALL, data, NULL, 0, call});
  return 0;
}
int fake_capturing(Stream *s) { return s->capturing; }
void fake_spoil(Stream *s) { s->spoilt = 1; }

int cuInit(unsigned flags) {
  const char *code = getenv("FAKE_CUDA_INIT");
  return code ? atoi(code) : (int)flags;
}
int cuGetErrorName(int code, const char **name) {
  *name = code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : code == ILLEGAL ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OTHER";
  return 0;
}
int cuDriverGetVersion(int *version) { return *version = 12060, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetName(char *name, int size, int device) {
  const char *given = getenv("FAKE_CUDA_NAME");
  snprintf(name, (size_t)size, "%s", given ? given : "a test double, no GPU");
  return device;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : getenv("FAKE_CUDA_CARD") == NULL;
  return device;
}
int cuDeviceGetPCIBusId(char *place, int size, int device) {
  snprintf(place, (size_t)size, "0000:01:00.0");
  return device;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &live, device; }
int cuCtxSetCurrent(void *context) { return context != &live; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { return *available = 1u << 30, *total = 2u << 30, 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  int code = fails(__func__);
  if (!code) *address = (uint64_t)(uintptr_t)allocate(size);
  return code;
}
int cuMemFree_v2(uint64_t address) { return release((void *)(uintptr_t)address), 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { return *address = allocate(size), (int)flags; }
int cuMemFreeHost(void *address) { return release(address), 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *s) {
  return put(s, (Op){COPY, (void *)(uintptr_t)to, from, size, NULL}), fails(__func__);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *s) {
  return put(s, (Op){COPY, to, (void *)(uintptr_t)from, size, NULL}), 0;
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t size, Stream *s) {
  return put(s, (Op){CLEAR, (void *)(uintptr_t)at, NULL, size, NULL}), (int)value;
}
int cuStreamCreate(void **stream, unsigned flags) {
  *stream = calloc(1, sizeof(Stream));
  return flags != 1 || !*stream;
}
int cuStreamSynchronize(Stream *s) {
  int code = fails(__func__);
  if (code || s->capturing) return code ? code : 900;
  for (size_t i = 0; i < s->queue.count; i++) {
    Op *op = &s->queue.ops[i];
    if (op->kind == COPY) memcpy(op->to, op->from, op->size);
    if (op->kind == CLEAR) memset(op->to, 0, op->size);
    if (op->kind == CALL) op->call(op->to);
  }
  s->queue.count = 0;
  return 0;
}
int cuStreamBeginCapture_v2(Stream *s, int mode) {
  if (s->capturing || s->queue.count) return 900;
  s->capturing = 1;
  s->spoilt = 0;
  return mode != 1;
}
int cuStreamEndCapture(Stream *s, void **graph) {
  if (!s->capturing) return 900;
  s->capturing = 0;
  *graph = NULL;
  if (s->spoilt) return clear(&s->recorded), CAPTURE_SPOILT;
  Work *work = malloc(sizeof *work);
  *work = s->recorded;
  memset(&s->recorded, 0, sizeof s->recorded);
  live++;
  return *graph = work, 0;
}
int cuGraphInstantiateWithFlags(void **exec, Work *graph, unsigned long long flags) {
  Work *copy = calloc(1, sizeof *copy);
  for (size_t i = 0; i < graph->count; i++) add(copy, graph->ops[i]);
  live++;
  return *exec = copy, (int)flags;
}
int cuGraphLaunch(Work *exec, Stream *s) {
  int code = fails(__func__);
  for (size_t i = 0; !code && i < exec->count; i++) add(&s->queue, exec->ops[i]);
  return code;
}
int cuGraphDestroy(Work *graph) { return clear(graph), free(graph), live--, 0; }
int cuGraphExecDestroy(Work *exec) { return cuGraphDestroy(exec); }

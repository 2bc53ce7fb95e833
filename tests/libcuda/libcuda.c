/* A CUDA driver library of our own, for running the real pycuda without a GPU.
 *
 * It is malloc behind CUDA's names, and strict: device addresses are not host addresses, each
 * stream is a thread that does its work later, contexts are on a stack for each thread and every
 * call needs one, asynchronous copies need pinned memory, and fresh memory holds garbage. What
 * was not given back is counted. The functions that this project uses through pycuda are here;
 * the test adds every other name that pycuda links to, returning "not supported".
 *
 * Names, arguments and error codes: CUDA driver API reference (docs.nvidia.com). No NVIDIA
 * source or header is used.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef uint64_t Address; /* CUdeviceptr */

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    NOT_SUPPORTED = 801
};

#define DEVICE_MEMORY ((size_t)1 << 30)
#define FAR ((Address)1 << 52) /* no host address reaches here */
#define GARBAGE 0xFF
#define MOST 4096
#define DEPTH 64

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char *start; size_t size; } device_memory[MOST], pinned_memory[MOST];
static int retained, streams, events, detaches, unsupported_calls, bad_frees;
static int the_context; /* its address is the primary context's handle */
static __thread void *contexts[DEPTH];
static __thread int depth;

#define NEED_CONTEXT if (depth == 0) return INVALID_CONTEXT

int aeseg_not_supported(void) {
    __atomic_add_fetch(&unsupported_calls, 1, __ATOMIC_SEQ_CST);
    return NOT_SUPPORTED;
}

/* Memory ------------------------------------------------------------------------------------ */

static int remember(int pinned, char *start, size_t size) {
    int found = 0;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < MOST && !found; i++) {
        if (pinned ? !pinned_memory[i].start : !device_memory[i].start) {
            if (pinned) { pinned_memory[i].start = start; pinned_memory[i].size = size; }
            else { device_memory[i].start = start; device_memory[i].size = size; }
            found = 1;
        }
    }
    pthread_mutex_unlock(&table_lock);
    return found;
}

static int forget(int pinned, char *start) {
    int found = 0;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < MOST && !found; i++) {
        if (start && start == (pinned ? pinned_memory[i].start : device_memory[i].start)) {
            if (pinned) pinned_memory[i].start = 0; else device_memory[i].start = 0;
            found = 1;
        }
    }
    if (!found) bad_frees++;
    pthread_mutex_unlock(&table_lock);
    return found;
}

static int lies_in(int pinned, const char *from, size_t size) {
    int found = 0;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < MOST && !found; i++) {
        char *start = pinned ? pinned_memory[i].start : device_memory[i].start;
        size_t length = pinned ? pinned_memory[i].size : device_memory[i].size;
        found = start && start <= from && from + size <= start + length;
    }
    pthread_mutex_unlock(&table_lock);
    return found;
}

/* Where device bytes really are, or null for an address that was freed or never given out. */
void *aeseg_bytes(Address address, size_t size) {
    char *host = (char *)(uintptr_t)(address ^ FAR);
    return (address & FAR) && lies_in(0, host, size) ? host : 0;
}

int cuMemAlloc_v2(Address *address, size_t size) {
    NEED_CONTEXT;
    char *host = size ? malloc(size) : 0;
    if (!host || !remember(0, host, size)) return OUT_OF_MEMORY;
    memset(host, GARBAGE, size);
    *address = (Address)(uintptr_t)host | FAR;
    return OK;
}

int cuMemFree_v2(Address address) {
    NEED_CONTEXT;
    char *host = (char *)(uintptr_t)(address ^ FAR);
    if (!forget(0, host)) return INVALID_VALUE;
    free(host);
    return OK;
}

int cuMemHostAlloc(void **host, size_t size, unsigned flags) {
    (void)flags;
    NEED_CONTEXT;
    *host = malloc(size);
    if (!*host || !remember(1, *host, size)) return OUT_OF_MEMORY;
    memset(*host, GARBAGE, size);
    return OK;
}

int cuMemFreeHost(void *host) {
    NEED_CONTEXT;
    if (!forget(1, host)) return INVALID_VALUE;
    free(host);
    return OK;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    NEED_CONTEXT;
    size_t used = 0;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < MOST; i++) used += device_memory[i].start ? device_memory[i].size : 0;
    pthread_mutex_unlock(&table_lock);
    *total = DEVICE_MEMORY;
    *free_bytes = DEVICE_MEMORY - used;
    return OK;
}

int cuMemsetD8_v2(Address address, unsigned char value, size_t size) {
    NEED_CONTEXT;
    void *host = aeseg_bytes(address, size);
    if (!host) return ILLEGAL_ADDRESS;
    memset(host, value, size);
    return OK;
}

/* Streams and events ------------------------------------------------------------------------ */

typedef struct Event {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t asked, done; /* how often it was recorded, and how many of these have happened */
    struct timespec when;
} Event;

typedef struct Work {
    enum { COPY_IN, COPY_OUT, RECORD, WAIT, CALL } kind;
    Address device;
    void *host;
    size_t size;
    Event *event;
    uint64_t count;
    void (*function)(void *);
    void *argument;
    struct Work *next;
} Work;

typedef struct Stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Work *first, *last;
    uint64_t asked, done;
    int ending, failed;
} Stream;

static void await(Event *event, uint64_t count) {
    pthread_mutex_lock(&event->lock);
    while (event->done < count) pthread_cond_wait(&event->changed, &event->lock);
    pthread_mutex_unlock(&event->lock);
}

static int do_work(Work *work) {
    void *bytes;
    switch (work->kind) {
    case COPY_IN:
    case COPY_OUT:
        bytes = aeseg_bytes(work->device, work->size);
        if (!bytes || !lies_in(1, work->host, work->size)) return ILLEGAL_ADDRESS;
        if (work->kind == COPY_IN) memcpy(bytes, work->host, work->size);
        else memcpy(work->host, bytes, work->size);
        break;
    case RECORD:
        pthread_mutex_lock(&work->event->lock);
        work->event->done = work->count;
        clock_gettime(CLOCK_MONOTONIC, &work->event->when);
        pthread_cond_broadcast(&work->event->changed);
        pthread_mutex_unlock(&work->event->lock);
        break;
    case WAIT:
        await(work->event, work->count);
        break;
    case CALL:
        work->function(work->argument);
        break;
    }
    return OK;
}

static void *run_stream(void *argument) {
    Stream *stream = argument;
    /* Late on purpose: who does not wait for the result is found out. */
    const struct timespec pause = {0, 100000};
    for (;;) {
        pthread_mutex_lock(&stream->lock);
        while (!stream->first && !stream->ending)
            pthread_cond_wait(&stream->changed, &stream->lock);
        Work *work = stream->first;
        pthread_mutex_unlock(&stream->lock);
        if (!work) return 0;
        nanosleep(&pause, 0);
        int result = do_work(work);
        pthread_mutex_lock(&stream->lock);
        if (result) stream->failed = result;
        stream->first = work->next;
        if (!stream->first) stream->last = 0;
        stream->done++;
        pthread_cond_broadcast(&stream->changed);
        pthread_mutex_unlock(&stream->lock);
        free(work);
    }
}

static int queue(Stream *stream, Work work) {
    if (!stream) return INVALID_HANDLE;
    Work *item = malloc(sizeof *item);
    *item = work;
    item->next = 0;
    pthread_mutex_lock(&stream->lock);
    if (stream->last) stream->last->next = item; else stream->first = item;
    stream->last = item;
    stream->asked++;
    int failed = stream->failed;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return failed;
}

int cuStreamCreate(Stream **handle, unsigned flags) {
    (void)flags;
    NEED_CONTEXT;
    Stream *stream = calloc(1, sizeof *stream);
    pthread_mutex_init(&stream->lock, 0);
    pthread_cond_init(&stream->changed, 0);
    pthread_create(&stream->thread, 0, run_stream, stream);
    __atomic_add_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    *handle = stream;
    return OK;
}

int cuStreamDestroy_v2(Stream *stream) {
    NEED_CONTEXT;
    pthread_mutex_lock(&stream->lock);
    stream->ending = 1;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, 0);
    free(stream);
    __atomic_sub_fetch(&streams, 1, __ATOMIC_SEQ_CST);
    return OK;
}

int cuStreamSynchronize(Stream *stream) {
    NEED_CONTEXT;
    if (!stream) return INVALID_HANDLE;
    pthread_mutex_lock(&stream->lock);
    uint64_t asked = stream->asked;
    while (stream->done < asked) pthread_cond_wait(&stream->changed, &stream->lock);
    int failed = stream->failed;
    pthread_mutex_unlock(&stream->lock);
    return failed;
}

int cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
    (void)flags;
    NEED_CONTEXT;
    pthread_mutex_lock(&event->lock);
    Work work = {.kind = WAIT, .event = event, .count = event->asked};
    pthread_mutex_unlock(&event->lock);
    return queue(stream, work);
}

int cuLaunchHostFunc(Stream *stream, void (*function)(void *), void *argument) {
    NEED_CONTEXT;
    return queue(stream, (Work){.kind = CALL, .function = function, .argument = argument});
}

int cuMemcpyHtoDAsync_v2(Address device, const void *host, size_t size, Stream *stream) {
    NEED_CONTEXT;
    if (!lies_in(1, host, size) || !aeseg_bytes(device, size)) return INVALID_VALUE;
    Work work = {.kind = COPY_IN, .device = device, .host = (void *)host, .size = size};
    return queue(stream, work);
}

int cuMemcpyDtoHAsync_v2(void *host, Address device, size_t size, Stream *stream) {
    NEED_CONTEXT;
    if (!lies_in(1, host, size) || !aeseg_bytes(device, size)) return INVALID_VALUE;
    return queue(stream, (Work){.kind = COPY_OUT, .device = device, .host = host, .size = size});
}

int cuEventCreate(Event **handle, unsigned flags) {
    (void)flags;
    NEED_CONTEXT;
    Event *event = calloc(1, sizeof *event);
    pthread_mutex_init(&event->lock, 0);
    pthread_cond_init(&event->changed, 0);
    __atomic_add_fetch(&events, 1, __ATOMIC_SEQ_CST);
    *handle = event;
    return OK;
}

int cuEventDestroy_v2(Event *event) {
    NEED_CONTEXT;
    free(event);
    __atomic_sub_fetch(&events, 1, __ATOMIC_SEQ_CST);
    return OK;
}

int cuEventRecord(Event *event, Stream *stream) {
    NEED_CONTEXT;
    pthread_mutex_lock(&event->lock);
    Work work = {.kind = RECORD, .event = event, .count = ++event->asked};
    pthread_mutex_unlock(&event->lock);
    return queue(stream, work);
}

int cuEventSynchronize(Event *event) {
    NEED_CONTEXT;
    pthread_mutex_lock(&event->lock);
    uint64_t count = event->asked;
    pthread_mutex_unlock(&event->lock);
    await(event, count);
    return OK;
}

int cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *to) {
    NEED_CONTEXT;
    if (!from->asked || !to->asked) return INVALID_HANDLE;
    if (from->done < from->asked || to->done < to->asked) return NOT_READY;
    *milliseconds = (float)(to->when.tv_sec - from->when.tv_sec) * 1e3f
                  + (float)(to->when.tv_nsec - from->when.tv_nsec) / 1e6f;
    return OK;
}

int cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

/* Device and context ------------------------------------------------------------------------- */

int cuInit(unsigned flags) { (void)flags; return OK; }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }

int cuDeviceGet(int *device, int index) {
    *device = index;
    return index == 0 ? OK : INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "malloc", (size_t)size);
    return OK;
}

int cuDeviceComputeCapability(int *major, int *minor, int device) {
    (void)device;
    *major = 8;
    *minor = 7;
    return OK;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 16 ? 8 : 0; /* 16: number of multiprocessors */
    return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    (void)device;
    __atomic_add_fetch(&retained, 1, __ATOMIC_SEQ_CST);
    *context = &the_context;
    return OK;
}

/* Unlike cuCtxDestroy, "this will not pop the context from the stack in any circumstances". */
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    return __atomic_sub_fetch(&retained, 1, __ATOMIC_SEQ_CST) < 0 ? INVALID_CONTEXT : OK;
}

int cuCtxPushCurrent_v2(void *context) {
    if (context != &the_context || retained <= 0 || depth == DEPTH) return INVALID_CONTEXT;
    contexts[depth++] = context;
    return OK;
}

int cuCtxPopCurrent_v2(void **context) {
    if (depth == 0) return INVALID_CONTEXT;
    *context = contexts[--depth];
    return OK;
}

int cuCtxGetDevice(int *device) {
    NEED_CONTEXT;
    *device = 0;
    return OK;
}

int cuCtxDetach(void *context) { /* not for a primary context */
    (void)context;
    detaches++;
    return INVALID_CONTEXT;
}

int cuGetErrorString(int error, const char **text) {
    switch (error) {
    case INVALID_VALUE: *text = "invalid argument"; break;
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case INVALID_CONTEXT: *text = "invalid device context"; break;
    case ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
    case NOT_SUPPORTED: *text = "operation not supported"; break;
    default: *text = "error";
    }
    return OK;
}

/* What is still held, for the test; the stack depth is of the calling thread. */
void aeseg_counts(int counts[9]) {
    memset(counts, 0, 9 * sizeof *counts);
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < MOST; i++) {
        counts[0] += device_memory[i].start != 0;
        counts[1] += pinned_memory[i].start != 0;
    }
    pthread_mutex_unlock(&table_lock);
    counts[2] = retained;
    counts[3] = streams;
    counts[4] = events;
    counts[5] = depth;
    counts[6] = detaches;
    counts[7] = unsupported_calls;
    counts[8] = bad_frees;
}

/* A stand-in for the NVIDIA driver's libcuda.so.1, for tests of what calls it. Nothing of it is NVIDIA's.
 *
 * Device memory is the host's, between canaries. What a stream is told is only kept, and done when somebody waits for it (a
 * stream, an event, a free): whoever reads without waiting reads the old bytes. Handles are looked up, not followed, so that one
 * used after its end is an error that is counted (fake_misuses) and not a crash. Time is a clock that work moves on: 1 ms for a
 * copy, 2 ms for a kernel. An "image" is "host:" and the path of a library; a kernel `name` is a function of that,
 * `int name(const unsigned grid[3], const unsigned block[3], void **arguments)`, beside `const char name_sizes[]` with the sizes
 * of its arguments as digits. What it returns other than 0 is the error that the context has from then on.
 *
 * Environment: FAKE_CUDA_DEVICES (2), FAKE_CUDA_MEMORY (bytes of each), FAKE_CUDA_INIT (what cuInit answers),
 * FAKE_CUDA_LACKS (a function that this driver is too old for).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "statuses.h"
#include "unsupported.h"

#define EXPORT __attribute__((visibility("default")))
typedef int Status;
typedef uint64_t Address;
#define X(number, name, words) name = number,
enum { STATUSES(X) };
#undef X

enum { CONTEXT, STREAM, EVENT, MEMORY, PINNED, MODULE, FUNCTION, GRAPH, EXECUTABLE, KINDS };
enum { COPY, KERNEL, RECORD, WAIT };
enum { GUARD = 64, MOST_ARGUMENTS = 32, DEVICES = 8 };

typedef int (*Kernel)(const unsigned *, const unsigned *, void **);
typedef struct Operation {
    int type;
    void *to;
    const void *from;
    size_t size;
    Kernel kernel;
    unsigned grid[3], block[3];
    unsigned char values[MOST_ARGUMENTS][16];
    int arguments;
    struct Object *event;
    uint64_t ticket; /* of the record that is made, or waited for */
    struct Operation *next;
} Operation;

typedef struct Object { /* whatever has a handle; never freed, so that what has ended is still known */
    int kind, open;
    struct Object *context;
    int device, retained, error;  /* of a context */
    Operation *first, *last;      /* of a stream what it has to do, of a graph what was captured */
    struct Object *captured;      /* the graph that a stream is captured to */
    int invalid;
    pthread_t capturer;
    int timed;                    /* of an event */
    uint64_t recorded, happened;  /* tickets of its last record, and of the last that is over */
    struct Object *stream;
    double at;
    unsigned char *bytes;         /* of memory, behind its first guard */
    size_t size;
    void *library;                /* of a module */
    struct Object *module;        /* of a function */
    Kernel kernel;
    const char *sizes;
    struct Object *next;
} Object;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static Object *objects, primary[DEVICES];
static int ready, misuses, reclaimed, open_now[KINDS];
static uint64_t tickets;
static double clock_ms;
static __thread Object *stack[16];
static __thread int depth;

static struct { char name[64]; int after, status; } fault; /* the `after`-th call of that name from now on fails */
static struct { char name[64]; int times; } called[128];

/* ---- what tests ask for */

EXPORT void fake_fail(const char *name, int nth, Status status) {
    snprintf(fault.name, sizeof fault.name, "%s", name);
    fault.after = nth;
    fault.status = status;
}

EXPORT int fake_pending_fault(void) { return fault.after > 0; }
EXPORT int fake_open(int kind) { return open_now[kind]; }
EXPORT int fake_misuses(void) { return misuses; }
EXPORT int fake_reclaimed(void) { return reclaimed; }
EXPORT int fake_depth(void) { return depth; }
EXPORT int fake_calls(const char *name) {
    for (int i = 0; i < 128; i++)
        if (!strcmp(called[i].name, name)) return called[i].times;
    return 0;
}

/* ---- bookkeeping */

static Status misuse(const char *what, Status status) {
    misuses++;
    fprintf(stderr, "fake libcuda: %s\n", what);
    return status;
}

/* Counts a call, and answers what it was told to fail with. */
static Status enter(const char *name) {
    for (int i = 0; i < 128; i++) {
        if (!called[i].name[0]) snprintf(called[i].name, sizeof called[i].name, "%s", name);
        if (!strcmp(called[i].name, name)) { called[i].times++; break; }
    }
    if (fault.after > 0 && !strcmp(fault.name, name) && --fault.after == 0) return fault.status;
    return CUDA_SUCCESS;
}

static Object *current(void) { return depth ? stack[depth - 1] : NULL; }

static Status usable(void) {
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    if (!current()) return CUDA_ERROR_INVALID_CONTEXT;
    if (!current()->open) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    return current()->error;
}

/* Begins a call. PLAIN ones are left at once if they are to fail; those that free do so first, as the driver's do, which answer
 * then what went wrong before them. */
static void unlock(int *unused) { (void)unused; pthread_mutex_unlock(&lock); }
#define LOCKED(name) \
    pthread_mutex_lock(&lock); \
    __attribute__((cleanup(unlock), unused)) int locked = 0; \
    Status failure = enter(name)
#define PLAIN(name) LOCKED(name); if (failure) return failure
#define IN_CONTEXT do { Status unusable = usable(); if (unusable) return unusable; } while (0)
#define TRY(call) do { Status tried = (call); if (tried) return tried; } while (0)

static Object *create(int kind) {
    Object *made = calloc(1, sizeof *made);
    *made = (Object){.kind = kind, .open = 1, .context = current(), .next = objects};
    objects = made;
    open_now[kind]++;
    return made;
}

static void end(Object *object) {
    object->open = 0;
    open_now[object->kind]--;
}

/* The object of a handle, which has to be open and of the context that is current. */
static Status find(const void *handle, int kind, Object **found) {
    for (Object *object = objects; object; object = object->next)
        if (object == handle && object->kind == kind) {
            if (!object->open) return misuse("a handle is used after its end", CUDA_ERROR_INVALID_HANDLE);
            if (object->context != current()) return misuse("a handle of another context", CUDA_ERROR_INVALID_CONTEXT);
            *found = object;
            return CUDA_SUCCESS;
        }
    return misuse("no such handle", CUDA_ERROR_INVALID_HANDLE);
}

static Object *holding(Address address, size_t size, int kind) {
    for (Object *object = objects; object; object = object->next) {
        Address start = (Address)object->bytes;
        if (object->open && object->kind == kind && start <= address && address + size <= start + object->size) return object;
    }
    return NULL;
}

static Object *starting(Address address, int kind) {
    Object *object = holding(address, 0, kind);
    return object && (Address)object->bytes == address ? object : NULL;
}

/* ---- work */

static void run(Object *stream, uint64_t until);

static void perform(Object *stream, Operation *operation) {
    void *arguments[MOST_ARGUMENTS];
    for (int i = 0; i < operation->arguments; i++) arguments[i] = operation->values[i];
    if (operation->type == COPY) {
        memcpy(operation->to, operation->from, operation->size);
        clock_ms += 1;
    } else if (operation->type == KERNEL) {
        Status status = operation->kernel(operation->grid, operation->block, arguments);
        if (status) stream->context->error = status;
        clock_ms += 2;
    } else if (operation->type == RECORD) {
        operation->event->happened = operation->ticket;
        operation->event->at = clock_ms;
    } else if (operation->event->happened < operation->ticket) {
        run(operation->event->stream, operation->ticket);
    }
}

/* Does what a stream was told, up to the record with this ticket; 0: all of it. */
static void run(Object *stream, uint64_t until) {
    while (stream->first && !stream->context->error) {
        Operation *operation = stream->first;
        stream->first = operation->next;
        if (!stream->first) stream->last = NULL;
        perform(stream, operation);
        int there = operation->type == RECORD && operation->ticket == until;
        free(operation);
        if (there) return;
    }
}

static void run_all(Object *context) {
    for (Object *object = objects; object; object = object->next)
        if (object->kind == STREAM && object->context == context) run(object, 0);
}

static void append(Object *to, const Operation *operation) {
    Operation *kept = malloc(sizeof *kept);
    *kept = *operation;
    kept->next = NULL;
    if (to->last) to->last->next = kept;
    else to->first = kept;
    to->last = kept;
}

static Status tell(Object *stream, const Operation *operation) {
    if (stream->captured && operation->type == WAIT) return CUDA_SUCCESS;
    append(stream->captured ? stream->captured : stream, operation);
    return CUDA_SUCCESS;
}

/* What waits or allocates may not be called on a thread that captures, and spoils the capture. */
static Status not_captured(void) {
    Status status = CUDA_SUCCESS;
    for (Object *object = objects; object; object = object->next)
        if (object->open && object->kind == STREAM && object->captured && pthread_equal(object->capturer, pthread_self())) {
            object->invalid = 1;
            status = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    return status;
}

/* ---- the driver: itself and its devices */

static int setting(const char *name, int otherwise) {
    const char *said = getenv(name);
    return said && *said ? atoi(said) : otherwise;
}

static Status known(int device) {
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    return 0 <= device && device < setting("FAKE_CUDA_DEVICES", 2) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

EXPORT Status cuGetErrorName(Status status, const char **name) {
#define X(number, known, words) if (status == number) { *name = #known; return CUDA_SUCCESS; }
    STATUSES(X)
#undef X
    *name = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORT Status cuGetErrorString(Status status, const char **text) {
#define X(number, known, words) if (status == number) { *text = words; return CUDA_SUCCESS; }
    STATUSES(X)
#undef X
    *text = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

EXPORT Status cuInit(unsigned flags) {
    PLAIN("cuInit");
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    Status status = setting("FAKE_CUDA_INIT", 0);
    if (!status && !setting("FAKE_CUDA_DEVICES", 2)) status = CUDA_ERROR_NO_DEVICE;
    ready = !status;
    return status;
}

EXPORT Status cuDriverGetVersion(int *version) { *version = 13000; return CUDA_SUCCESS; }

EXPORT Status cuDeviceGetCount(int *count) {
    PLAIN("cuDeviceGetCount");
    if (!ready) return CUDA_ERROR_NOT_INITIALIZED;
    *count = setting("FAKE_CUDA_DEVICES", 2);
    return CUDA_SUCCESS;
}

EXPORT Status cuDeviceGet(int *device, int ordinal) {
    PLAIN("cuDeviceGet");
    TRY(known(ordinal));
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT Status cuDeviceGetName(char *name, int size, int device) {
    PLAIN("cuDeviceGetName");
    TRY(known(device));
    snprintf(name, size, "Fake GPU %d", device);
    return CUDA_SUCCESS;
}

EXPORT Status cuDeviceTotalMem_v2(size_t *bytes, int device) {
    PLAIN("cuDeviceTotalMem");
    TRY(known(device));
    *bytes = setting("FAKE_CUDA_MEMORY", 1 << 30);
    return CUDA_SUCCESS;
}

EXPORT Status cuDeviceGetAttribute(int *value, int attribute, int device) {
    PLAIN("cuDeviceGetAttribute");
    TRY(known(device));
    *value = attribute == 75 ? 9 : attribute == 76 ? device : attribute == 16 ? 132 : -1; /* capability, multiprocessors */
    return CUDA_SUCCESS;
}

EXPORT Status cuDeviceComputeCapability(int *major, int *minor, int device) {
    PLAIN("cuDeviceComputeCapability");
    TRY(known(device));
    *major = 9;
    *minor = device;
    return CUDA_SUCCESS;
}

EXPORT Status cuDeviceGetPCIBusId(char *text, int size, int device) {
    PLAIN("cuDeviceGetPCIBusId");
    TRY(known(device));
    snprintf(text, size, "0000:%02X:00.0", 0x3A + device);
    return CUDA_SUCCESS;
}

/* ---- contexts */

EXPORT Status cuDevicePrimaryCtxRetain(void **context, int device) {
    PLAIN("cuDevicePrimaryCtxRetain");
    TRY(known(device));
    Object *object = &primary[device];
    if (!object->retained++) {
        *object = (Object){.kind = CONTEXT, .open = 1, .device = device, .retained = 1};
        open_now[CONTEXT]++;
    }
    *context = object;
    return CUDA_SUCCESS;
}

EXPORT Status cuDevicePrimaryCtxRelease_v2(int device) {
    LOCKED("cuDevicePrimaryCtxRelease");
    TRY(known(device));
    Object *object = &primary[device];
    if (!object->retained) return misuse("a context is released once too often", CUDA_ERROR_INVALID_CONTEXT);
    if (!--object->retained) {
        run_all(object);
        end(object);
        for (Object *left = objects; left; left = left->next) /* what nobody freed goes with its context */
            if (left->open && left->context == object) {
                end(left);
                reclaimed++;
            }
    }
    return failure;
}

EXPORT Status cuCtxPushCurrent_v2(void *context) {
    PLAIN("cuCtxPushCurrent");
    for (int i = 0; i < DEVICES; i++)
        if (context == &primary[i] && primary[i].open) {
            stack[depth++] = context;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_CONTEXT;
}

EXPORT Status cuCtxPopCurrent_v2(void **context) {
    PLAIN("cuCtxPopCurrent");
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    *context = stack[--depth];
    return CUDA_SUCCESS;
}

EXPORT Status cuCtxGetDevice(int *device) {
    PLAIN("cuCtxGetDevice");
    IN_CONTEXT;
    *device = current()->device;
    return CUDA_SUCCESS;
}

EXPORT Status cuCtxSynchronize(void) {
    PLAIN("cuCtxSynchronize");
    IN_CONTEXT;
    run_all(current());
    return current()->error;
}

/* ---- memory */

static size_t used(Object *context) {
    size_t sum = 0;
    for (Object *object = objects; object; object = object->next)
        if (object->open && object->kind == MEMORY && object->context == context) sum += object->size;
    return sum;
}

EXPORT Status cuMemGetInfo_v2(size_t *left, size_t *total) {
    PLAIN("cuMemGetInfo");
    IN_CONTEXT;
    *total = setting("FAKE_CUDA_MEMORY", 1 << 30);
    *left = *total - used(current());
    return CUDA_SUCCESS;
}

static Object *guarded(int kind, size_t size) {
    unsigned char *all = malloc(size + 2 * GUARD);
    memset(all, 0xCA, size + 2 * GUARD);
    Object *object = create(kind);
    object->bytes = all + GUARD;
    object->size = size;
    return object;
}

static Status release(Object *object) {
    run_all(object->context);
    Status status = object->context->error;
    if (status) return status; /* nothing more can be freed on a device that is lost */
    for (int i = 0; i < GUARD; i++)
        if (object->bytes[i - GUARD] != 0xCA || object->bytes[object->size + i] != 0xCA) {
            misuse("somebody wrote beside this memory", 0);
            break;
        }
    memset(object->bytes, 0xDD, object->size);
    free(object->bytes - GUARD);
    end(object);
    return CUDA_SUCCESS;
}

EXPORT Status cuMemAlloc_v2(Address *address, size_t size) {
    PLAIN("cuMemAlloc");
    IN_CONTEXT;
    TRY(not_captured());
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (used(current()) + size > (size_t)setting("FAKE_CUDA_MEMORY", 1 << 30)) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = (Address)guarded(MEMORY, size)->bytes;
    return CUDA_SUCCESS;
}

EXPORT Status cuMemFree_v2(Address address) {
    LOCKED("cuMemFree");
    IN_CONTEXT;
    TRY(not_captured());
    Object *object = starting(address, MEMORY);
    if (!object) return misuse("no such memory to free", CUDA_ERROR_INVALID_VALUE);
    TRY(release(object));
    return failure;
}

EXPORT Status cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    PLAIN("cuMemHostAlloc");
    IN_CONTEXT;
    TRY(not_captured());
    if (!size || flags) return CUDA_ERROR_INVALID_VALUE;
    *address = guarded(PINNED, size)->bytes;
    return CUDA_SUCCESS;
}

EXPORT Status cuMemFreeHost(void *address) {
    LOCKED("cuMemFreeHost");
    IN_CONTEXT;
    TRY(not_captured());
    Object *object = starting((Address)address, PINNED);
    if (!object) return misuse("no such pinned memory to free", CUDA_ERROR_INVALID_VALUE);
    TRY(release(object));
    return failure;
}

static Status copy(void *to, const void *from, size_t size, Address device, Address host, void *handle) {
    Object *stream;
    IN_CONTEXT;
    TRY(find(handle, STREAM, &stream));
    if (!holding(device, size, MEMORY)) return misuse("a copy beyond the device's memory", CUDA_ERROR_INVALID_VALUE);
    if (!holding(host, size, PINNED)) return misuse("a copy beyond pinned memory", CUDA_ERROR_INVALID_VALUE);
    return tell(stream, &(Operation){.type = COPY, .to = to, .from = from, .size = size});
}

EXPORT Status cuMemcpyHtoDAsync_v2(Address device, const void *host, size_t size, void *stream) {
    PLAIN("cuMemcpyHtoDAsync");
    return copy((void *)device, host, size, device, (Address)host, stream);
}

EXPORT Status cuMemcpyDtoHAsync_v2(void *host, Address device, size_t size, void *stream) {
    PLAIN("cuMemcpyDtoHAsync");
    return copy(host, (void *)device, size, device, (Address)host, stream);
}

/* ---- streams and events */

EXPORT Status cuStreamCreate(void **stream, unsigned flags) {
    PLAIN("cuStreamCreate");
    IN_CONTEXT;
    if (flags != 1) return misuse("a stream that waits for the default one", CUDA_ERROR_INVALID_VALUE);
    *stream = create(STREAM);
    return CUDA_SUCCESS;
}

EXPORT Status cuStreamDestroy_v2(void *handle) {
    Object *stream;
    LOCKED("cuStreamDestroy");
    IN_CONTEXT;
    TRY(find(handle, STREAM, &stream));
    run(stream, 0);
    end(stream);
    return failure;
}

EXPORT Status cuStreamSynchronize(void *handle) {
    Object *stream;
    PLAIN("cuStreamSynchronize");
    IN_CONTEXT;
    TRY(find(handle, STREAM, &stream));
    TRY(not_captured());
    run(stream, 0);
    return stream->context->error;
}

EXPORT Status cuStreamWaitEvent(void *handle, void *waited, unsigned flags) {
    Object *stream, *event;
    PLAIN("cuStreamWaitEvent");
    IN_CONTEXT;
    TRY(find(handle, STREAM, &stream));
    TRY(find(waited, EVENT, &event));
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (!event->recorded) return CUDA_SUCCESS;
    return tell(stream, &(Operation){.type = WAIT, .event = event, .ticket = event->recorded});
}

EXPORT Status cuEventCreate(void **event, unsigned flags) {
    PLAIN("cuEventCreate");
    IN_CONTEXT;
    if ((flags | 2) != 3) return misuse("an event for which the host spins", CUDA_ERROR_INVALID_VALUE);
    Object *made = create(EVENT);
    made->timed = !(flags & 2);
    *event = made;
    return CUDA_SUCCESS;
}

EXPORT Status cuEventDestroy_v2(void *handle) {
    Object *event;
    LOCKED("cuEventDestroy");
    IN_CONTEXT;
    TRY(find(handle, EVENT, &event));
    end(event);
    return failure;
}

EXPORT Status cuEventRecord(void *handle, void *on) {
    Object *event, *stream;
    PLAIN("cuEventRecord");
    IN_CONTEXT;
    TRY(find(handle, EVENT, &event));
    TRY(find(on, STREAM, &stream));
    if (stream->captured) return CUDA_SUCCESS;
    event->recorded = ++tickets;
    event->stream = stream;
    return tell(stream, &(Operation){.type = RECORD, .event = event, .ticket = event->recorded});
}

EXPORT Status cuEventSynchronize(void *handle) {
    Object *event;
    PLAIN("cuEventSynchronize");
    IN_CONTEXT;
    TRY(find(handle, EVENT, &event));
    if (event->happened < event->recorded) run(event->stream, event->recorded);
    return event->context->error;
}

EXPORT Status cuEventElapsedTime_v2(float *ms, void *from, void *to) {
    Object *start, *over;
    PLAIN("cuEventElapsedTime");
    IN_CONTEXT;
    TRY(find(from, EVENT, &start));
    TRY(find(to, EVENT, &over));
    if (!start->timed || !over->timed || !start->recorded || !over->recorded) return CUDA_ERROR_INVALID_HANDLE;
    if (start->happened < start->recorded || over->happened < over->recorded) return CUDA_ERROR_NOT_READY;
    *ms = (float)(over->at - start->at);
    return CUDA_SUCCESS;
}

/* ---- modules and kernels */

EXPORT Status cuModuleLoadData(void **module, const void *image) {
    PLAIN("cuModuleLoadData");
    IN_CONTEXT;
    if (strncmp(image, "host:", 5)) return CUDA_ERROR_INVALID_IMAGE;
    void *library = dlopen((const char *)image + 5, RTLD_NOW | RTLD_LOCAL);
    if (!library) return CUDA_ERROR_INVALID_IMAGE;
    Object *made = create(MODULE);
    made->library = library;
    *module = made;
    return CUDA_SUCCESS;
}

EXPORT Status cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options, void **values) {
    for (unsigned i = 0; i < count; i++)
        if (options[i] == 4 || options[i] == 6) values[i] = NULL; /* the logs' sizes, in and out */
    return cuModuleLoadData(module, image);
}

EXPORT Status cuModuleUnload(void *handle) {
    Object *module;
    LOCKED("cuModuleUnload");
    IN_CONTEXT;
    TRY(find(handle, MODULE, &module));
    run_all(module->context);
    for (Object *object = objects; object; object = object->next)
        if (object->kind == FUNCTION && object->open && object->module == module) end(object);
    dlclose(module->library);
    end(module);
    return failure;
}

EXPORT Status cuModuleGetFunction(void **function, void *handle, const char *name) {
    Object *module;
    char beside[128];
    PLAIN("cuModuleGetFunction");
    IN_CONTEXT;
    TRY(find(handle, MODULE, &module));
    snprintf(beside, sizeof beside, "%s_sizes", name);
    Kernel kernel = (Kernel)dlsym(module->library, name);
    const char *sizes = dlsym(module->library, beside);
    if (!kernel || !sizes) return CUDA_ERROR_NOT_FOUND;
    Object *made = create(FUNCTION);
    made->module = module;
    made->kernel = kernel;
    made->sizes = sizes;
    *function = made;
    return CUDA_SUCCESS;
}

/* pycuda sets it before each launch, in vain since CUDA 4. */
EXPORT Status cuFuncSetBlockShape(void *function, int x, int y, int z) {
    Object *found;
    return x > 0 && y > 0 && z > 0 ? find(function, FUNCTION, &found) : CUDA_ERROR_INVALID_VALUE;
}

/* Copies the arguments, from an array of addresses or from one packed block, as cuLaunchKernel takes them. */
static Status take(Operation *operation, const char *sizes, void **parameters, void **extra) {
    const unsigned char *packed = extra ? extra[1] : NULL;
    size_t at = 0, given = extra ? *(size_t *)extra[3] : 0;
    for (; *sizes; sizes++, operation->arguments++) {
        size_t size = *sizes - '0';
        at = (at + size - 1) / size * size;
        if (packed && at + size > given) return misuse("too few arguments", CUDA_ERROR_INVALID_VALUE);
        const void *value = packed ? packed + at : parameters[operation->arguments];
        memcpy(operation->values[operation->arguments], value, size);
        at += size;
    }
    return packed && given != at ? misuse("too many arguments", CUDA_ERROR_INVALID_VALUE) : CUDA_SUCCESS;
}

EXPORT Status cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                             unsigned shared, void *handle, void **parameters, void **extra) {
    Object *kernel, *stream;
    PLAIN("cuLaunchKernel");
    IN_CONTEXT;
    TRY(find(function, FUNCTION, &kernel));
    TRY(find(handle, STREAM, &stream));
    if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || shared) return CUDA_ERROR_INVALID_VALUE;
    Operation operation = {.type = KERNEL, .kernel = kernel->kernel, .grid = {gx, gy, gz}, .block = {bx, by, bz}};
    TRY(take(&operation, kernel->sizes, parameters, extra));
    return tell(stream, &operation);
}

/* ---- graphs */

EXPORT Status cuStreamBeginCapture_v2(void *handle, int mode) {
    Object *stream;
    PLAIN("cuStreamBeginCapture");
    IN_CONTEXT;
    TRY(find(handle, STREAM, &stream));
    if (mode != 1) return misuse("a capture that forbids other threads their calls", CUDA_ERROR_INVALID_VALUE);
    if (stream->captured) return CUDA_ERROR_INVALID_VALUE;
    stream->captured = create(GRAPH);
    stream->capturer = pthread_self();
    stream->invalid = 0;
    return CUDA_SUCCESS;
}

EXPORT Status cuStreamEndCapture(void *handle, void **graph) {
    Object *stream;
    LOCKED("cuStreamEndCapture");
    IN_CONTEXT;
    TRY(find(handle, STREAM, &stream));
    if (!stream->captured) return CUDA_ERROR_INVALID_VALUE;
    if (!pthread_equal(stream->capturer, pthread_self())) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    *graph = stream->captured;
    stream->captured = NULL;
    if (!failure && stream->invalid) failure = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (failure) {
        end(*graph);
        *graph = NULL;
    }
    return failure;
}

static void append_all(Object *to, const Object *from) {
    for (const Operation *operation = from->first; operation; operation = operation->next) append(to, operation);
}

EXPORT Status cuGraphInstantiateWithFlags(void **executable, void *handle, unsigned long long flags) {
    Object *graph;
    PLAIN("cuGraphInstantiate");
    IN_CONTEXT;
    TRY(find(handle, GRAPH, &graph));
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    Object *made = create(EXECUTABLE);
    append_all(made, graph);
    *executable = made;
    return CUDA_SUCCESS;
}

EXPORT Status cuGraphLaunch(void *handle, void *on) {
    Object *executable, *stream;
    PLAIN("cuGraphLaunch");
    IN_CONTEXT;
    TRY(find(handle, EXECUTABLE, &executable));
    TRY(find(on, STREAM, &stream));
    append_all(stream->captured ? stream->captured : stream, executable);
    return CUDA_SUCCESS;
}

static Status destroy(const char *name, void *handle, int kind) {
    Object *object;
    LOCKED(name);
    IN_CONTEXT;
    TRY(find(handle, kind, &object));
    end(object);
    return failure;
}

EXPORT Status cuGraphDestroy(void *handle) { return destroy("cuGraphDestroy", handle, GRAPH); }
EXPORT Status cuGraphExecDestroy(void *handle) { return destroy("cuGraphExecDestroy", handle, EXECUTABLE); }

/* ---- what exists and is not used, and how cuda-bindings finds the rest */

#define X(name) EXPORT Status name(void) { return CUDA_ERROR_NOT_SUPPORTED; }
UNSUPPORTED(X)
#undef X

EXPORT Status cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    static const char *const newest[] = {"_v4", "_v3", "_v2", ""};
    const char *lacks = getenv("FAKE_CUDA_LACKS");
    char symbol[128];
    Dl_info here;
    (void)version, (void)flags;
    *function = NULL;
    dladdr(&lock, &here);
    void *self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    for (int i = 0; i < 4 && !*function && !(lacks && !strcmp(lacks, name)); i++) {
        snprintf(symbol, sizeof symbol, "%s%s", name, newest[i]);
        *function = dlsym(self, symbol);
    }
    dlclose(self);
    if (status) *status = *function ? 0 : 1;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

EXPORT Status cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

/* fulgur: MiniMax-01-class language models on any Vulkan GPU.
 *
 * This header holds what every other one needs: version, results, log, memory, progress.
 *
 *     instance -> device -> model -> session -> tokens
 *
 * General rules
 *  - Every call that can fail returns a ful_result; ful_last_error() then holds one line for this
 *    thread that names the file, tensor, value and limit concerned. Nothing aborts, exits or
 * prints.
 *  - A NULL params pointer and a zero field both mean "default". The params macros set struct_size,
 *    which keeps old binaries working when a struct grows at its end.
 *  - Destroy functions take the address of a handle and set it to NULL; NULL is allowed.
 *  - Sizes carry their unit in the name (_bytes, _tokens, _ns, _ms). Token ids are int32_t.
 *  - An instance, a device, a model and a tokenizer may be used from several threads at once; a
 *    session and a stream belong to one thread at a time.
 */
#ifndef FULGUR_FULGUR_H
#define FULGUR_FULGUR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FUL_VERSION_MAJOR 0
#define FUL_VERSION_MINOR 1
#define FUL_VERSION_PATCH 0
/* 0xMMmmpp */
#define FUL_VERSION ((FUL_VERSION_MAJOR << 16) | (FUL_VERSION_MINOR << 8) | FUL_VERSION_PATCH)

#if defined(_WIN32)
#if defined(FUL_BUILD_SHARED)
#define FUL_API __declspec(dllexport)
#elif defined(FUL_USE_SHARED)
#define FUL_API __declspec(dllimport)
#else
#define FUL_API
#endif
#elif defined(__GNUC__)
#define FUL_API __attribute__((visibility("default")))
#else
#define FUL_API
#endif

/* Negative values are failures. */
typedef enum ful_result {
    FUL_OK = 0,
    FUL_ERR_ARGUMENT = -1,        /* a call's own arguments are wrong */
    FUL_ERR_HOST_MEMORY = -2,     /* an allocation on the host failed */
    FUL_ERR_DEVICE_MEMORY = -3,   /* not enough device memory, or over the device's limits */
    FUL_ERR_DEVICE_LOST = -4,     /* the device was lost or did not answer in time; reopen it */
    FUL_ERR_UNSUPPORTED = -5,     /* the model, the device or the build lacks something needed */
    FUL_ERR_IO = -6,              /* a file could not be opened, read, mapped or written */
    FUL_ERR_FORMAT = -7,          /* a file's content is malformed or contradicts itself */
    FUL_ERR_CONTEXT_FULL = -8,    /* the session's max_tokens would be exceeded */
    FUL_ERR_CANCELLED = -9,       /* a callback asked to stop */
    FUL_ERR_SELFTEST = -10,       /* a device computed a known answer wrongly */
    FUL_ERR_STATE_MISMATCH = -11, /* a saved state belongs to another model */
    FUL_ERR_NOT_FINITE = -12, /* a logit became NaN or infinite; the error line names the layer */
    FUL_ERR_NO_DEVICE = -13   /* no Vulkan loader, driver or matching device */
} ful_result;

/* Version of the library in use, as FUL_VERSION. */
FUL_API uint32_t ful_version(void);

/* "FUL_OK", "FUL_ERR_ARGUMENT", ...; "FUL_ERR_UNKNOWN" for other values. Static storage. */
FUL_API const char *ful_result_name(ful_result result);

/* The line that explains the last failure on the calling thread; "" if there was none. Valid until
 * the next failing call on this thread. */
FUL_API const char *ful_last_error(void);

typedef enum ful_log_level {
    FUL_LOG_DEFAULT = 0, /* as a threshold: FUL_LOG_INFO */
    FUL_LOG_ERROR = 1,
    FUL_LOG_WARNING = 2,
    FUL_LOG_INFO = 3,
    FUL_LOG_DEBUG = 4,
    FUL_LOG_TRACE = 5
} ful_log_level;

/* Receives one message without a newline. May be called from any thread that uses the library. */
typedef void (*ful_log_fn)(void *ctx, ful_log_level level, const char *message);

/* Memory functions for the host. All zero means malloc, realloc and free. realloc and free never
 * get NULL; sizes are never 0. Must be thread-safe. */
typedef struct ful_alloc {
    void *(*malloc)(void *ctx, size_t bytes);
    void *(*realloc)(void *ctx, void *p, size_t old_bytes, size_t bytes);
    void (*free)(void *ctx, void *p);
    void *ctx;
} ful_alloc;

typedef enum ful_phase {
    FUL_PHASE_READ = 1,      /* reading and checking the model's files */
    FUL_PHASE_UPLOAD = 2,    /* copying weights to the device */
    FUL_PHASE_PIPELINES = 3, /* compiling shaders */
    FUL_PHASE_WRITE = 4      /* writing a model's file */
} ful_phase;

typedef struct ful_progress {
    ful_phase phase;
    uint64_t done;  /* bytes, or pipelines */
    uint64_t total; /* same unit; never 0 */
} ful_progress;

/* Called now and then during a long call, on the calling thread. Returning false cancels the call,
 * which then returns FUL_ERR_CANCELLED with everything released. */
typedef bool (*ful_progress_fn)(void *ctx, const ful_progress *progress);

/* Element types of tensors, in files and on the device. From FUL_TYPE_Q8_0 on, elements lie in
 * blocks of 32 or 256 that share scales, with the names and the arithmetic of GGUF files. */
typedef enum ful_type {
    FUL_TYPE_DEFAULT = 0,
    FUL_TYPE_F32 = 1,
    FUL_TYPE_F16 = 2,
    FUL_TYPE_BF16 = 3,
    FUL_TYPE_Q8_0 = 4,
    FUL_TYPE_Q4_0 = 5,
    FUL_TYPE_Q4_1 = 6,
    FUL_TYPE_Q5_0 = 7,
    FUL_TYPE_Q5_1 = 8,
    FUL_TYPE_Q2_K = 9,
    FUL_TYPE_Q3_K = 10,
    FUL_TYPE_Q4_K = 11,
    FUL_TYPE_Q5_K = 12,
    FUL_TYPE_Q6_K = 13,
    FUL_TYPE_IQ4_NL = 14,
    FUL_TYPE_MXFP4 = 15
} ful_type;

/* "f32", "f16", "bf16", "q8_0", "q4_k", ...; "unknown" for other values. Static storage. */
FUL_API const char *ful_type_name(ful_type type);

/* ---- instance: the Vulkan loader, the log and the allocator shared by everything below ---- */

typedef struct ful_instance ful_instance;

typedef struct ful_instance_params {
    size_t struct_size;
    ful_log_fn log; /* NULL: no messages */
    void *log_ctx;
    ful_log_level log_level; /* threshold; 0 = FUL_LOG_INFO */
    const ful_alloc *alloc;  /* copied; NULL = libc */
    bool validation; /* enable VK_LAYER_KHRONOS_validation where present; its messages go to the log
                      */
    const char *app_name; /* copied; shown to the driver; NULL = "fulgur" */
} ful_instance_params;
#define ful_instance_params(...)                                                                   \
    (&(ful_instance_params){.struct_size = sizeof(ful_instance_params), __VA_ARGS__})

/* Loads the Vulkan loader and creates an instance. Succeeds without a Vulkan loader: devices are
 * then none (ful_device_list gives 0), so files can still be inspected and text tokenized. Keep one
 * as long as the program may need it: a driver is unloaded with its last instance, and some can't
 * be loaded again any number of times (NVIDIA's 580.159 refuses after some tens). Errors:
 * FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_instance_create(ful_instance **out, const ful_instance_params *params);

/* Every device, model and session made from the instance must be destroyed first. */
FUL_API void ful_instance_destroy(ful_instance **instance);

/* Validation errors (core or synchronisation) seen so far; 0 unless params.validation was set or
 * the layer was enabled from outside. */
FUL_API uint64_t ful_instance_validation_errors(const ful_instance *instance);

#ifdef __cplusplus
}
#endif

#endif

/* Devices: what is there, what it can do, and opening one. */
#ifndef FULGUR_DEVICE_H
#define FULGUR_DEVICE_H

#include "fulgur/fulgur.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ful_device ful_device;

typedef enum ful_device_kind {
    FUL_DEVICE_OTHER = 0,
    FUL_DEVICE_INTEGRATED = 1,
    FUL_DEVICE_DISCRETE = 2,
    FUL_DEVICE_VIRTUAL = 3,
    FUL_DEVICE_CPU = 4 /* the processor: through a Vulkan driver, or (ful_device_info.built_in)
                        * through the library's own kernels in C */
} ful_device_kind;

/* Optional features, as bits of ful_caps.features and ful_device_params.caps_off. The name in
 * FULGUR_CAPS is in brackets. */
typedef enum ful_feature {
    FUL_FEATURE_SUBGROUP = 1 << 0,  /* [subgroup] arithmetic and shuffle in compute */
    FUL_FEATURE_FP16 = 1 << 1,      /* [fp16] half arithmetic */
    FUL_FEATURE_INT8 = 1 << 2,      /* [int8] 8-bit integer arithmetic */
    FUL_FEATURE_STORAGE16 = 1 << 3, /* [storage16] 16-bit values in storage buffers */
    FUL_FEATURE_STORAGE8 = 1 << 4,  /* [storage8] 8-bit values in storage buffers */
    FUL_FEATURE_INT_DOT = 1 << 5,   /* [intdot] accelerated packed 4x8-bit signed dot product */
    FUL_FEATURE_COOPMAT = 1 << 6,   /* [coopmat] VK_KHR_cooperative_matrix */
    FUL_FEATURE_COOPMAT2 = 1 << 7,  /* [coopmat2] VK_NV_cooperative_matrix2 */
    FUL_FEATURE_BUFFER_ADDRESS = 1 << 8, /* [address] buffer device addresses */
    FUL_FEATURE_TIMELINE = 1 << 9,       /* [timeline] timeline semaphores */
    FUL_FEATURE_TIMESTAMP = 1 << 10,     /* [timestamp] GPU timestamps on the queue used */
    FUL_FEATURE_MEMORY_BUDGET = 1 << 11, /* [budget] VK_EXT_memory_budget */
    FUL_FEATURE_SUBGROUP_SIZE = 1 << 12, /* [subgroupsize] a required subgroup size can be set */
    FUL_FEATURE_PORTABILITY = 1 << 13    /* a portability subset (MoltenVK); information only */
} ful_feature;

/* One product of cooperative matrices, m x k times k x n. */
typedef struct ful_matrix_shape {
    uint32_t m, n, k;
} ful_matrix_shape;

/* Flexible sizes of cooperative matrices: multiples of m, n and k. */
typedef struct ful_matrix_grain {
    uint32_t m, n, k;
    uint32_t invocations; /* of the workgroup they are for; 0 at subgroup scope */
    bool workgroup;       /* workgroup scope; else subgroup */
} ful_matrix_grain;
enum { FUL_MATRIX_SHAPES = 8 };

/* What a device has after masking. Zero means absent. */
typedef struct ful_caps {
    uint32_t features;                   /* ful_feature bits */
    uint32_t api_version;                /* as VK_MAKE_API_VERSION */
    uint32_t subgroup_size;              /* which kernels ask for */
    uint32_t subgroup_min, subgroup_max; /* all three 1 if subgroups are masked */
    uint32_t workgroup_invocations;      /* per workgroup */
    uint32_t workgroup_size[3], workgroup_count[3];
    uint32_t shared_bytes; /* per workgroup */
    uint32_t push_bytes;
    uint32_t storage_buffers;     /* per shader stage */
    uint32_t storage_align_bytes; /* descriptor offset alignment */
    uint32_t uniform_align_bytes;
    uint32_t uniform_range_bytes;
    uint64_t storage_range_bytes; /* one binding */
    uint64_t allocation_bytes;    /* one allocation */
    uint64_t non_coherent_atom_bytes;
    uint64_t device_memory_bytes; /* heaps that are local to the device */
    uint64_t
        host_visible_local_bytes; /* of these, what the host can write directly (ReBAR, unified) */
    double timestamp_period_ns;   /* 0: no timestamps */
    bool unified_memory;          /* host and device share their memory */
    /* coopmat: shapes of f16 x f16 -> f32 in a subgroup that the kernels know, best first, and the
     * subgroup size that goes with them. */
    uint32_t matrix_count, matrix_subgroup;
    ful_matrix_shape matrix[FUL_MATRIX_SHAPES];
    /* coopmat2: flexible sizes of f16 x f16 -> f32. */
    uint32_t flexible_count;
    ful_matrix_grain flexible[FUL_MATRIX_SHAPES];
    uint32_t flexible_dimension;    /* largest m, n or k */
    uint32_t flexible_workgroup;    /* most invocations at workgroup scope */
    uint32_t flexible_shared_bytes; /* of shared memory that the driver keeps at workgroup scope */
} ful_caps;

typedef struct ful_device_info {
    uint32_t index; /* in ful_device_list's order: Vulkan's, then the built-in device */
    ful_device_kind kind;
    char name[256];
    char driver[256]; /* driver name and version as text */
    uint8_t uuid[16];
    uint32_t vendor_id, device_id, driver_version;
    char pci[40];      /* "0000:65:00.0" as the system writes it; "" if the driver does not tell */
    ful_caps caps;     /* after FULGUR_CAPS */
    bool usable;       /* false: below the floor */
    char why_not[160]; /* if !usable: which limit or feature falls short, and of what */
    bool built_in;     /* the library's own: no driver, no loader; always there, always last */
} ful_device_info;

/* Fills out[0..*count) and sets *count to the number of devices, at least 1. With out NULL only
 * counts. If *count is too small, fills what fits and still sets the full number. */
FUL_API ful_result ful_device_list(ful_instance *instance, ful_device_info *out, uint32_t *count);

/* "integrated GPU", "discrete GPU", "CPU", ... Static storage. */
FUL_API const char *ful_device_kind_name(ful_device_kind kind);
/* Name of one feature bit as in FULGUR_CAPS; NULL for an unknown bit. Static storage. */
FUL_API const char *ful_feature_name(uint32_t feature);

/* A pipeline cache of the application's own. get fills *bytes with the size of the entry `key`;
 * with data non-NULL copies at most *bytes bytes. Returns false if there is none. */
typedef bool (*ful_cache_get_fn)(void *ctx, const char *key, void *data, size_t *bytes);
typedef void (*ful_cache_set_fn)(void *ctx, const char *key, const void *data, size_t bytes);

/* When kernels are tried on small problems with known answers; see fulgur/selftest.h. */
typedef enum ful_selftest_when {
    FUL_SELFTEST_ON_LOAD = 0, /* those a model will use, when the first such model is loaded */
    FUL_SELFTEST_NEVER = 1    /* only ful_device_selftest does; older verdicts hold */
} ful_selftest_when;

typedef struct ful_device_params {
    size_t struct_size;
    const uint8_t *uuid;   /* 16 bytes from ful_device_info, or NULL */
    const char *name_part; /* part of the name, case ignored, or NULL; "cpu" alone means the
                            * built-in device */
    const uint32_t *index; /* into ful_device_list's order, or NULL */
    uint32_t caps_off;     /* ful_feature bits to pretend absent */
    const char *caps;      /* like FULGUR_CAPS and applied after it; NULL = none. Comma-separated:
                            * "-fp16", "-subgroup", ...; "shared=16384", "workgroup=128", "buffers=4",
                            * "range=1048576", "allocation=N", "push=128", "subgroup_size=N", "memory=N",
                            * "unified=0" */
    uint64_t memory_limit_bytes; /* 0 = what the driver's budget says */
    uint32_t max_submit_ms;      /* aim for one submission; 0 = 100; UINT32_MAX = no limit */
    uint32_t wait_timeout_ms; /* for one submission; 0 = 30,000, 600,000 for drivers that run on the
                               * processor; then FUL_ERR_DEVICE_LOST */
    const char *cache_dir;    /* folder of pipeline cache, tuning and self-test verdicts; NULL = the
                               * user's cache folder; "" = none */
    ful_cache_get_fn cache_get; /* instead of a folder; both or neither */
    ful_cache_set_fn cache_set;
    void *cache_ctx;
    uint32_t threads; /* of the built-in device; 0 = FULGUR_THREADS, else one for each processor */
    ful_selftest_when selftest;
    /* Of one allocation of device memory, at least 64 KiB; larger tensors and caches lie in
     * several. 0 = 256 MiB, on discrete GPUs and the built-in device what the driver allows: there,
     * where allocations are not what phones and other programs fall over, kernels cover more in one
     * dispatch. UINT64_MAX = what the driver allows. ful_device_info.caps of an open device shows
     * it. */
    uint64_t max_allocation_bytes;
    /* Aim for one dispatch, by the speed guessed for a device of its kind: attention visits so many
     * keys at once, and default prefill chunks (ful_plan_params.chunk_tokens) are so long, but at
     * least 32 tokens. 0 = 50, 10 on GPUs of phones (Adreno, Mali, PowerVR, Xclipse, and whatever
     * Android runs on), no limit on drivers that run on the processor; UINT32_MAX = no limit. */
    uint32_t max_dispatch_ms;
} ful_device_params;
#define ful_device_params(...)                                                                     \
    (&(ful_device_params){.struct_size = sizeof(ful_device_params), __VA_ARGS__})

/* Opens the device named by uuid, index or name_part; with none of them the one that FULGUR_DEVICE
 * names as name_part would ("cpu": Vulkan is then left alone altogether), else the best one:
 * discrete, then integrated, then virtual, then CPU, and among equals the one with most memory.
 * Where Vulkan has no usable device, or the driver of the best one refuses to make it, the built-in
 * one is opened, with a warning in the log. Errors: FUL_ERR_NO_DEVICE (the line lists what is
 * there), FUL_ERR_UNSUPPORTED (below the floor), FUL_ERR_ARGUMENT (FULGUR_CAPS, caps or
 * FULGUR_FAULT can't be read). */
FUL_API ful_result ful_device_open(ful_device **out, ful_instance *instance,
                                   const ful_device_params *params);

/* Waits for the device, stores the pipeline cache and releases everything. Models and sessions on
 * it must be gone. */
FUL_API void ful_device_close(ful_device **device);

/* Owned by the device. */
FUL_API const ful_device_info *ful_device_get_info(const ful_device *device);

/* Bytes of device memory fulgur holds now, and the most it ever held. */
FUL_API void ful_device_memory(const ful_device *device, uint64_t *now_bytes, uint64_t *peak_bytes);

#ifdef __cplusplus
}
#endif

#endif

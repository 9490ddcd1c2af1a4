/* A profile: what a device is held to. Read from profiles.txt, which explains the words. */
#ifndef TESTS_LAYER_PROFILE_H
#define TESTS_LAYER_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <vulkan/vulkan_core.h>

enum { PROFILE_LIMITS = 24, PROFILE_FAMILIES = 8, PROFILE_TEXT = 2048 };

/* Limits of VkPhysicalDeviceLimits that a profile may name. */
typedef struct limit_row {
    const char *name;
    size_t offset;
    uint32_t bytes; /* 4 or 8: unsigned */
    uint32_t count;
    bool raises; /* an alignment: the profile's value is the least, else the largest */
} limit_row;
extern const limit_row limit_rows[];
extern const size_t limit_row_count;

typedef struct profile_limit {
    const limit_row *row;
    uint64_t value[3];
} profile_limit;

typedef struct profile {
    char name[64];
    uint32_t api_version;  /* 0: the driver's */
    int32_t device_type;   /* VkPhysicalDeviceType; -1: the driver's */
    uint32_t driver_id;    /* VkDriverId; 0: the driver's */
    uint32_t vendor_id;    /* 0: the driver's */
    bool lists_extensions; /* false: all of the driver's */
    bool lists_features;
    char extensions[PROFILE_TEXT], hide[PROFILE_TEXT];
    char features[PROFILE_TEXT], off[PROFILE_TEXT];
    profile_limit limits[PROFILE_LIMITS];
    size_t limit_count;
    uint64_t allocation_bytes, buffer_bytes; /* 0: the driver's */
    uint32_t subgroup_size;                  /* 0: the driver's; else 1 */
    bool masks_subgroup;
    VkSubgroupFeatureFlags subgroup_operations;
    int32_t timestamp_bits; /* -1: the driver's */
    double timestamp_period;
    VkMemoryHeap heaps[VK_MAX_MEMORY_HEAPS]; /* none: the driver's memory */
    uint64_t budget[VK_MAX_MEMORY_HEAPS];
    VkMemoryType types[VK_MAX_MEMORY_TYPES];
    uint32_t heap_count, type_count;
    VkQueueFamilyProperties families[PROFILE_FAMILIES]; /* none: the driver's */
    uint32_t family_count;
} profile;

/* Reads [name] of the file. False, with a line on stderr, if it is not there or says something that
 * is not understood. */
bool profile_read(const char *path, const char *name, profile *out);
/* Whether the blank-separated text holds the word. */
bool words_hold(const char *text, const char *word);
/* structs.c: whether a profile may name such a feature. */
bool feature_known(const char *name);

#endif

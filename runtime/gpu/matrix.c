/* What matrix units a device has: cooperative matrices of a subgroup, and the flexible sizes of
 * NV_cooperative_matrix2. */
#include <string.h>

#include "gpu/gpu_internal.h"

/* Shapes the kernels know, best first: large ones need fewer loads for a product. */
static uint32_t shape_rank(const ful_matrix_shape *s)
{
    static const ful_matrix_shape known[] = {
        {16, 16, 16}, {16, 8, 16}, {8, 16, 16}, {8, 8, 16}, {8, 8, 8}};
    enum { KNOWN = sizeof(known) / sizeof(known[0]) };
    for (uint32_t i = 0; i < KNOWN; i++)
        if (s->m == known[i].m && s->n == known[i].n && s->k == known[i].k)
            return i;
    return KNOWN;
}

void caps_add_matrix(ful_caps *caps, ful_matrix_shape shape)
{
    enum { KNOWN = 5 };
    uint32_t rank = shape_rank(&shape), at = 0;
    if (rank == KNOWN)
        return;
    while (at < caps->matrix_count && shape_rank(&caps->matrix[at]) < rank)
        at++;
    if (at < caps->matrix_count && shape_rank(&caps->matrix[at]) == rank)
        return; /* listed twice */
    memmove(&caps->matrix[at + 1], &caps->matrix[at],
            (caps->matrix_count - at) * sizeof(caps->matrix[0]));
    caps->matrix[at] = shape;
    caps->matrix_count++;
}

void caps_add_flexible(ful_caps *caps, const ful_matrix_grain *grain)
{
    if (caps->flexible_count < FUL_MATRIX_SHAPES)
        caps->flexible[caps->flexible_count++] = *grain;
}

void caps_settle_matrices(uint32_t vendor_id, ful_caps *caps)
{
    enum { VENDOR_INTEL = 0x8086 };
    /* Intel's matrix units belong to its smallest subgroups: 16 from Xe2 on. */
    caps->matrix_subgroup = vendor_id == VENDOR_INTEL ? caps->subgroup_min : caps->subgroup_size;
    /* Before Xe2 its compiler makes every use of them spill. */
    if (vendor_id == VENDOR_INTEL && caps->subgroup_min < 16)
        caps->matrix_count = 0;
    bool held =
        (caps->features & FUL_FEATURE_SUBGROUP_SIZE) || caps->subgroup_min == caps->subgroup_max;
    if (caps->matrix_count == 0 || !held)
        caps_remove(FUL_FEATURE_COOPMAT, caps);
}

void caps_hold_matrix(ful_device_kind kind, ful_matrix_shape shape, ful_caps *caps)
{
    bool held = false;
    for (uint32_t i = 0; i < caps->matrix_count; i++)
        held = held || memcmp(&caps->matrix[i], &shape, sizeof(shape)) == 0;
    held = held || (kind == FUL_DEVICE_CPU && caps->matrix_count > 0);
    memset(caps->matrix, 0, sizeof(caps->matrix));
    caps->matrix_count = 0;
    if (held)
        caps_add_matrix(caps, shape);
    caps_remove(caps->matrix_count > 0 ? 0 : FUL_FEATURE_COOPMAT, caps);
}

/* The loader keeps these functions by instance: pointers from one that is gone, such as volk's
 * globals may be, lead nowhere. */
#ifdef VK_KHR_cooperative_matrix
static void shapes_read(VkInstance instance, VkPhysicalDevice physical, ful_caps *caps)
{
    PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR get =
        (PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR)vkGetInstanceProcAddr(
            instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    VkCooperativeMatrixPropertiesKHR list[64];
    uint32_t count = sizeof(list) / sizeof(list[0]);
    if (!get)
        return;
    memset(list, 0, sizeof(list));
    for (uint32_t i = 0; i < count; i++)
        list[i].sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR;
    if (get(physical, &count, list) < VK_SUCCESS)
        return;
    for (uint32_t i = 0; i < count; i++) {
        const VkCooperativeMatrixPropertiesKHR *p = &list[i];
        if (p->AType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
            p->BType == VK_COMPONENT_TYPE_FLOAT16_KHR &&
            p->CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            p->ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR && !p->saturatingAccumulation &&
            p->scope == VK_SCOPE_SUBGROUP_KHR)
            caps_add_matrix(caps, (ful_matrix_shape){p->MSize, p->NSize, p->KSize});
    }
}
#endif

#ifdef VK_NV_cooperative_matrix2
static void flexible_read(VkInstance instance, VkPhysicalDevice physical, ful_caps *caps)
{
    PFN_vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV get =
        (PFN_vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV)
            vkGetInstanceProcAddr(
                instance, "vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV");
    VkPhysicalDeviceCooperativeMatrix2PropertiesNV limits;
    memset(&limits, 0, sizeof(limits));
    limits.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_2_PROPERTIES_NV;
    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                         .pNext = &limits};
    vkGetPhysicalDeviceProperties2(physical, &props);
    caps->flexible_dimension = limits.cooperativeMatrixFlexibleDimensionsMaxDimension;
    caps->flexible_workgroup = limits.cooperativeMatrixWorkgroupScopeMaxWorkgroupSize;
    caps->flexible_shared_bytes = limits.cooperativeMatrixWorkgroupScopeReservedSharedMemory;

    VkCooperativeMatrixFlexibleDimensionsPropertiesNV list[64];
    uint32_t count = sizeof(list) / sizeof(list[0]);
    if (!get)
        return;
    memset(list, 0, sizeof(list));
    for (uint32_t i = 0; i < count; i++)
        list[i].sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_FLEXIBLE_DIMENSIONS_PROPERTIES_NV;
    if (get(physical, &count, list) < VK_SUCCESS)
        return;
    for (uint32_t i = 0; i < count; i++) {
        const VkCooperativeMatrixFlexibleDimensionsPropertiesNV *p = &list[i];
        if (p->AType != VK_COMPONENT_TYPE_FLOAT16_KHR ||
            p->BType != VK_COMPONENT_TYPE_FLOAT16_KHR ||
            p->CType != VK_COMPONENT_TYPE_FLOAT32_KHR ||
            p->ResultType != VK_COMPONENT_TYPE_FLOAT32_KHR || p->saturatingAccumulation)
            continue;
        ful_matrix_grain grain = {.m = p->MGranularity,
                                  .n = p->NGranularity,
                                  .k = p->KGranularity,
                                  .invocations = p->workgroupInvocations,
                                  .workgroup = p->scope == VK_SCOPE_WORKGROUP_KHR};
        caps_add_flexible(caps, &grain);
    }
}
#endif

void matrices_read(VkInstance instance, VkPhysicalDevice physical, uint32_t vendor_id,
                   ful_caps *caps)
{
#ifdef VK_KHR_cooperative_matrix
    if (caps->features & FUL_FEATURE_COOPMAT)
        shapes_read(instance, physical, caps);
#endif
    caps_settle_matrices(vendor_id, caps);
#ifdef VK_NV_cooperative_matrix2
    if (caps->features & FUL_FEATURE_COOPMAT2)
        flexible_read(instance, physical, caps);
#endif
    (void)instance, (void)physical;
}

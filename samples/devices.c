/* Lists the Vulkan devices that fulgur can see. */
#include <stdio.h>

#include <fulgur/device.h>

int main(void)
{
    ful_instance *instance = NULL;
    if (ful_instance_create(&instance, NULL) != FUL_OK) {
        fprintf(stderr, "%s\n", ful_last_error());
        return 1;
    }
    ful_device_info devices[16];
    uint32_t count = 16;
    if (ful_device_list(instance, devices, &count) != FUL_OK)
        fprintf(stderr, "%s\n", ful_last_error());
    for (uint32_t i = 0; i < count && i < 16; i++) {
        const ful_device_info *d = &devices[i];
        printf("%u: %s, %s, %.0f MiB%s%s\n", d->index, d->name, ful_device_kind_name(d->kind),
               (double)d->caps.device_memory_bytes / 1048576.0,
               d->usable ? "" : ", not usable: ", d->why_not);
    }
    ful_instance_destroy(&instance);
    return 0;
}

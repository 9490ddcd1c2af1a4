/* What a project that uses fulgur compiles: version, an instance, its end. */
#include <fulgur/fulgur.h>

#include <stdio.h>

int main(void)
{
    uint32_t version = ful_version();
    if (version != FUL_VERSION) {
        fprintf(stderr, "library %06x, headers %06x\n", (unsigned)version, (unsigned)FUL_VERSION);
        return 1;
    }
    ful_instance *instance = NULL;
    if (ful_instance_create(&instance, NULL) != FUL_OK) {
        fprintf(stderr, "%s\n", ful_last_error());
        return 1;
    }
    ful_instance_destroy(&instance);
    printf("fulgur %u.%u.%u\n", (unsigned)(version >> 16), (unsigned)(version >> 8 & 0xff),
           (unsigned)(version & 0xff));
    return 0;
}

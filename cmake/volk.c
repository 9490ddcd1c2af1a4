/* volk is part of the library: its functions load the Vulkan loader at run time, so nothing here is
 * linked against Vulkan. */
#include <volk.c>

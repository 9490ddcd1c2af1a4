#version 450
#pragma use_storage_buffer
// o[i] = step[i % 8] + i: reads the uniform block at binding 8. Tests of the device layer.
layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;

layout(binding = 0) writeonly buffer O { uint o[]; };
layout(binding = 8) uniform Step { uvec4 step0, step1; };

void main()
{
    uint i = gl_GlobalInvocationID.x;
    uint k = i % 8;
    o[i] = (k < 4 ? step0[k] : step1[k - 4]) + i;
}

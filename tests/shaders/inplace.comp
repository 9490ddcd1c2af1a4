#version 450
#pragma use_storage_buffer
// x[i] = x[i] * mul + add, `rounds` times, for i < count. Tests of the device layer.
layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;

layout(binding = 0) buffer X { uint x[]; };
layout(push_constant) uniform Push { uint count, mul, add, rounds; };

void main()
{
    uint i = gl_GlobalInvocationID.x;
    if (i >= count)
        return;
    uint v = x[i];
    for (uint r = 0; r < rounds; r++)
        v = v * mul + add;
    x[i] = v;
}

// Folded grids: the work of one dispatch is a line of groups times a number of row groups. The line
// is folded into x and y because a device may allow no more than 65,535 groups in either.
#ifndef FULGUR_INC_DISPATCH
#define FULGUR_INC_DISPATCH

uint line_group()
{
    return gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
}

uint row_group()
{
    return gl_WorkGroupID.z;
}

#endif

// SOURCE, a file of kernels, as a library of which `launch_kernel` runs the one called KERNEL, arguments as for cuLaunchKernel.
#include "cuda.h"
#include SOURCE

extern "C" void launch_kernel(const unsigned* grid, const unsigned* block, void** arguments)
{
    launch(KERNEL, grid, block, arguments);
}

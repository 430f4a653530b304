/* Kernels as the fake libcuda runs them: see libcuda.c. */
#include <stdint.h>
#include <string.h>
#include <time.h>

#define KERNEL(name, sizes) \
    const char name##_sizes[] = sizes; \
    int name(const unsigned *grid, const unsigned *block, void **arguments)

/* Writes each argument to 8 bytes of its own at the first one, an address: all the sizes that there are. */
KERNEL(every_type, "81248481248841")
{
    static const int sizes[] = {1, 2, 4, 8, 4, 8, 1, 2, 4, 8, 8, 4, 1};
    unsigned char *to = *(unsigned char **)arguments[0];
    for (int i = 0; i < 13; i++) memcpy(to + 8 * i, arguments[i + 1], sizes[i]);
    memcpy(to + 8 * 13, grid, 12);
    memcpy(to + 8 * 15, block, 12);
    return 0;
}

/* Adds `amount` to `count` bytes. */
KERNEL(add, "844")
{
    (void)grid, (void)block;
    unsigned char *bytes = *(unsigned char **)arguments[0];
    for (uint32_t i = 0; i < *(uint32_t *)arguments[1]; i++) bytes[i] += *(int32_t *)arguments[2];
    return 0;
}

KERNEL(nothing, "")
{
    (void)grid, (void)block, (void)arguments;
    return 0;
}

/* Fails as a device does that was given a wrong address. */
KERNEL(wrong_address, "")
{
    (void)grid, (void)block, (void)arguments;
    return 700;
}

/* Says in its first byte that it runs, and waits for the second one, up to ten seconds. */
KERNEL(wait_for_host, "8")
{
    (void)grid, (void)block;
    volatile unsigned char *flags = *(unsigned char **)arguments[0];
    flags[0] = 1;
    for (int i = 0; i < 10000 && !flags[1]; i++) nanosleep(&(struct timespec){.tv_nsec = 1000000}, 0);
    return flags[1] ? 0 : 908;
}

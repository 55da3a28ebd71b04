/* Makes a folder's files slow, as a busy network file system does: each operation waits, and is counted.

   cc -O2 -shared -fPIC -o slow_files.so slow_files.c -ldl
   LD_PRELOAD=./slow_files.so SLOW_FOLDER=/data SLOW_MS=8 SLOW_COUNTS=/tmp/counts python ...

   Delayed are open, stat, fstat, lstat, statx, read, pread, preadv and lseek of paths that begin with SLOW_FOLDER, by
   whatever calls them through the C library. Pages of a memory map and what the C library calls itself (fopen) are not.
   SLOW_COUNTS is a file of four 64-bit numbers, shared by all processes: opens, stats, reads and seeks. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define DESCRIPTORS 65536
enum { OPENS, STATS, READS, SEEKS, KINDS };

static _Atomic unsigned char slow[DESCRIPTORS];
static _Atomic uint64_t *counts;
static const char *folder;
static long nanoseconds;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *ms = getenv("SLOW_MS"), *path = getenv("SLOW_COUNTS");
    nanoseconds = ms ? (long)(atof(ms) * 1e6) : 0;
    if (path) {
        int file = open(path, O_RDWR | O_CREAT, 0644);
        if (file >= 0 && ftruncate(file, KINDS * 8) == 0) {
            void *map = mmap(NULL, KINDS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (map != MAP_FAILED) counts = map;
        }
    }
    folder = getenv("SLOW_FOLDER");
}

static void delay(int kind) {
    struct timespec left = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    if (counts) atomic_fetch_add(&counts[kind], 1);
    while (nanosleep(&left, &left) != 0) {}
}

static int inside(const char *path) { return folder && strncmp(path, folder, strlen(folder)) == 0; }

static int is_slow(int file) { return file >= 0 && file < DESCRIPTORS && slow[file]; }

static int opened(int file, int is_inside) {
    if (file >= 0 && file < DESCRIPTORS) slow[file] = (unsigned char)is_inside;
    return file;
}

#define OPEN(name, before_type, before, ...)                                   \
    int name(before_type const char *path, int flags, ...) {                   \
        REAL(name);                                                            \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;\
        va_end(rest);                                                          \
        if (inside(path)) delay(OPENS);                                        \
        return opened(real(before path, flags, mode), inside(path));           \
    }
#define NOTHING
#define FIRST int directory,
#define FIRST_GIVEN directory,
OPEN(open, NOTHING, NOTHING)
OPEN(open64, NOTHING, NOTHING)
OPEN(openat, FIRST, FIRST_GIVEN)
OPEN(openat64, FIRST, FIRST_GIVEN)

int close(int file) {
    REAL(close);
    opened(file, 0);
    return real(file);
}

#define STAT(name, type)                                                       \
    int name(const char *path, struct type *found) {                           \
        REAL(name);                                                            \
        if (inside(path)) delay(STATS);                                        \
        return real(path, found);                                              \
    }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

#define FSTAT(name, type)                                                      \
    int name(int file, struct type *found) {                                   \
        REAL(name);                                                            \
        if (is_slow(file)) delay(STATS);                                       \
        return real(file, found);                                              \
    }
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)

#define FSTATAT(name, type)                                                    \
    int name(int directory, const char *path, struct type *found, int flags) { \
        REAL(name);                                                            \
        if (inside(path) || (!*path && is_slow(directory))) delay(STATS);\
        return real(directory, path, found, flags);                            \
    }
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

int statx(int directory, const char *path, int flags, unsigned int mask, struct statx *found) {
    REAL(statx);
    if (inside(path)) delay(STATS);
    return real(directory, path, flags, mask, found);
}

ssize_t read(int file, void *data, size_t size) {
    REAL(read);
    if (is_slow(file)) delay(READS);
    return real(file, data, size);
}

#define PREAD(name, data_type, size_type, offset_type)                         \
    ssize_t name(int file, data_type data, size_type size, offset_type place) {\
        REAL(name);                                                            \
        if (is_slow(file)) delay(READS);                                       \
        return real(file, data, size, place);                                  \
    }
PREAD(pread, void *, size_t, off_t)
PREAD(pread64, void *, size_t, off64_t)
PREAD(preadv, const struct iovec *, int, off_t)
PREAD(preadv64, const struct iovec *, int, off64_t)

#define SEEK(name, type)                                                       \
    type name(int file, type place, int whence) {                              \
        REAL(name);                                                            \
        if (is_slow(file)) delay(SEEKS);                                       \
        return real(file, place, whence);                                      \
    }
SEEK(lseek, off_t)
SEEK(lseek64, off64_t)

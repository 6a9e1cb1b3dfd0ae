// SPDX-License-Identifier: Apache-2.0
/* Makes the n-th call of one system function fail, or be short, in the process that loads it: LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

static char armed[32];  /* the function, "" for none */
static int nth, code, seen;  /* fail the nth call (0: each) with errno code; code < 0: be short */

void faults_arm(const char *name, int n, int error) { strncpy(armed, name, 31); nth = n; code = error; seen = 0; }
int faults_seen(void) { return seen; }

static int hit(const char *name) { return !strcmp(armed, name) && (++seen == nth || !nth); }
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(as) if (hit(as)) { errno = code; return -1; }

static int directory(int fd) { struct stat s; return !fstat(fd, &s) && S_ISDIR(s.st_mode); }

int fsync(int fd) { FAIL(directory(fd) ? "fsync directory" : "fsync") return REAL(fsync)(fd); }
int flock(int fd, int how) { FAIL("flock") return REAL(flock)(fd, how); }
int rename(const char *a, const char *b) { FAIL("rename") return REAL(rename)(a, b); }
int renameat(int d, const char *a, int e, const char *b) { FAIL("rename") return REAL(renameat)(d, a, e, b); }
int linkat(int d, const char *a, int e, const char *b, int f) { FAIL("link") return REAL(linkat)(d, a, e, b, f); }
int mkdirat(int d, const char *a, mode_t m) { FAIL("mkdir") return REAL(mkdirat)(d, a, m); }
int unlinkat(int d, const char *a, int f) { FAIL("unlink") return REAL(unlinkat)(d, a, f); }
int fchmod(int fd, mode_t m) { FAIL("fchmod") return REAL(fchmod)(fd, m); }
int ftruncate64(int fd, off64_t n) { FAIL("ftruncate") return REAL(ftruncate64)(fd, n); }
int ftruncate(int fd, off_t n) { FAIL("ftruncate") return REAL(ftruncate)(fd, n); }
int madvise(void *p, size_t n, int a) { FAIL("madvise") return REAL(madvise)(p, n, a); }
int posix_fadvise64(int fd, off64_t o, off64_t n, int a) {
    if (hit("fadvise")) return code;
    return REAL(posix_fadvise64)(fd, o, n, a);
}

#define WRITE(name, off) \
    ssize_t name(int fd, const void *p, size_t n, off o) { \
        if (hit("write")) { if (code >= 0) { errno = code; return -1; } n = n > 7 ? n / 2 : n; } \
        return REAL(name)(fd, p, n, o); }
WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)
#define READ(name, off) \
    ssize_t name(int fd, void *p, size_t n, off o) { \
        if (hit("read")) { if (code >= 0) { errno = code; return -1; } n = n > 7 ? n / 2 : n; } \
        return REAL(name)(fd, p, n, o); }
READ(pread, off_t)
READ(pread64, off64_t)
#define READV(name, off) \
    ssize_t name(int fd, const struct iovec *v, int c, off o) { \
        if (hit("read")) { \
            if (code >= 0) { errno = code; return -1; } \
            struct iovec half = {v->iov_base, v->iov_len > 7 ? v->iov_len / 2 : v->iov_len}; \
            return REAL(name)(fd, &half, 1, o); } \
        return REAL(name)(fd, v, c, o); }
READV(preadv, off_t)
READV(preadv64, off64_t)
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list l; va_start(l, flags); mode_t mode = va_arg(l, mode_t); va_end(l); \
        FAIL(flags & O_CREAT ? "create" : "open") return REAL(name)(path, flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
    int name(int d, const char *path, int flags, ...) { \
        va_list l; va_start(l, flags); mode_t mode = va_arg(l, mode_t); va_end(l); \
        FAIL(flags & O_CREAT ? "create" : "open") return REAL(name)(d, path, flags, mode); }
OPENAT(openat)
OPENAT(openat64)

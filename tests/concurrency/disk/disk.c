/* A disk that fails when it is told to, and that keeps a log of what was written to it. For LD_PRELOAD.
 *
 * Only files below DISK_ROOT are touched. Operations on them are counted; from number `first` on (see disk_fail) they fail
 * with `error`, until number `last`. A write may fail after half of it was written.
 *
 * The log has one record for each write, sync, truncation, renaming and removal that worked:
 * kind 1 byte, offset 8, length 4, length of the path 4, path, data; integers in the machine's own order.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long seen, first = -1, last = -1;
static int error_number = EIO, in_half, log_file = -1;

void disk_fail(long from, long until, int error, int half) {
    seen = 0, first = from, last = until, error_number = error, in_half = half;
}
long disk_seen(void) { return seen; }
void disk_log(const char *path) {
    log_file = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
}

static int below(const char *path) {
    const char *root = getenv("DISK_ROOT");
    return root && strncmp(path, root, strlen(root)) == 0;
}
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}
/* 0: go on. 1: fail. */
static int fails(void) {
    pthread_mutex_lock(&lock);
    long number = seen++;
    pthread_mutex_unlock(&lock);
    if (first < 0 || number < first || (last >= 0 && number > last)) return 0;
    errno = error_number;
    return 1;
}
static void note(char kind, const char *path, int64_t offset, const void *data, uint32_t length) {
    if (log_file < 0) return;
    int kept = errno;
    uint32_t path_length = strlen(path);
    pthread_mutex_lock(&lock);
    REAL(write)(log_file, &kind, 1), REAL(write)(log_file, &offset, 8), REAL(write)(log_file, &length, 4);
    REAL(write)(log_file, &path_length, 4), REAL(write)(log_file, path, path_length);
    REAL(write)(log_file, data, length);
    pthread_mutex_unlock(&lock);
    errno = kept;
}

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(write)(fd, data, length);
    if (fails()) {
        if (!in_half || length < 2) return -1;
        length /= 2;
    }
    ssize_t done = REAL(write)(fd, data, length);
    if (done > 0) note('w', path, lseek(fd, 0, SEEK_CUR) - done, data, done);
    return done;
}
static ssize_t place(int fd, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return REAL(pwrite)(fd, data, length, offset);
    if (fails()) {
        if (in_half && length > 1) REAL(pwrite)(fd, data, length / 2, offset);
        errno = error_number;
        return -1;
    }
    ssize_t done = REAL(pwrite)(fd, data, length, offset);
    if (done > 0) note('w', path, offset, data, done);
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return place(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return place(fd, data, length, offset); }

#define ON_FILE(kind, call, real, offset)                      \
    char path[PATH_MAX];                                       \
    if (!path_of(fd, path)) return real;                       \
    if (fails()) return -1;                                    \
    int result = real;                                         \
    if (!result) note(kind, path, offset, "", 0);              \
    return result;

int fsync(int fd) { ON_FILE('s', fsync, REAL(fsync)(fd), 0) }
int fdatasync(int fd) { ON_FILE('s', fdatasync, REAL(fdatasync)(fd), 0) }
int ftruncate(int fd, off_t size) { ON_FILE('t', ftruncate, REAL(ftruncate)(fd, size), size) }
int ftruncate64(int fd, off64_t size) { ON_FILE('t', ftruncate, REAL(ftruncate)(fd, size), size) }

int posix_fallocate(int fd, off_t offset, off_t length) {
    char path[PATH_MAX];
    if (path_of(fd, path) && fails()) return error_number;
    return REAL(posix_fallocate)(fd, offset, length);
}
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

int rename(const char *from, const char *to) {
    if (!below(from)) return REAL(rename)(from, to);
    if (fails()) return -1;
    int result = REAL(rename)(from, to);
    if (!result) note('r', from, 0, to, strlen(to));
    return result;
}
int renameat(int at, const char *from, int there, const char *to) {
    if (at == AT_FDCWD && there == AT_FDCWD) return rename(from, to);
    return REAL(renameat)(at, from, there, to);
}
int unlink(const char *path) {
    if (!below(path)) return REAL(unlink)(path);
    if (fails()) return -1;
    int result = REAL(unlink)(path);
    if (!result) note('u', path, 0, "", 0);
    return result;
}

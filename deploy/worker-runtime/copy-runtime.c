/* copy-runtime TARGET: puts the worker runtime into a volume of the user's pod.
 *
 * The only program of the worker-runtime image, which has no shell and no libraries. Copies /runtime into TARGET.
 * An init container may run again over its own, perhaps half-written, work: each file is written beside its place and
 * renamed into it. Exit status 1, with the reason on standard error, where anything fails.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef SOURCE
#define SOURCE "/runtime"
#endif

static int failed(const char *what, const char *path) {
    fprintf(stderr, "copy-runtime: cannot %s %s: %s\n", what, path, strerror(errno));
    return -1;
}

static int join(char *path, const char *folder, const char *name) {
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) < PATH_MAX) return 0;
    errno = ENAMETOOLONG;
    return failed("name a file in", folder);
}

static int copy_contents(int source, int target, const char *from, const char *to) {
    char buffer[65536];
    for (;;) {
        ssize_t got = read(source, buffer, sizeof buffer);
        if (got < 0) return failed("read", from);
        if (got == 0) return 0;
        for (ssize_t done = 0; done < got;) {
            ssize_t put = write(target, buffer + done, (size_t)(got - done));
            if (put < 0) return failed("write", to);
            done += put;
        }
    }
}

static int copy_file(const char *from, const char *to) {
    char beside[PATH_MAX];
    if (snprintf(beside, sizeof beside, "%s.new", to) >= (int)sizeof beside) {
        errno = ENAMETOOLONG;
        return failed("write", to);
    }
    int source = open(from, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (source < 0 || fstat(source, &about) < 0) return failed("open", from);
    /* A program stays one. */
    int target = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, about.st_mode & 0111 ? 0755 : 0644);
    int result = target < 0 ? failed("create", beside) : copy_contents(source, target, from, beside);
    close(source);
    if (target >= 0 && close(target) < 0 && result == 0) result = failed("write", beside);
    if (result == 0 && rename(beside, to) < 0) result = failed("rename to", to);
    return result;
}

static int copy_folder(const char *from, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    struct stat about;
    if (mkdir(to, 0755) < 0 && errno != EEXIST) return failed("make folder", to);
    DIR *folder = opendir(from);
    if (folder == NULL) return failed("open", from);
    int result = 0;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(folder);
        if (entry == NULL) {
            if (errno != 0) result = failed("read", from);
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (join(source, from, entry->d_name) < 0 || join(target, to, entry->d_name) < 0)
            result = -1;
        else if (lstat(source, &about) < 0)
            result = failed("look at", source);
        else
            result = S_ISDIR(about.st_mode) ? copy_folder(source, target) : copy_file(source, target);
        if (result < 0) break;
    }
    closedir(folder);
    return result;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: copy-runtime TARGET\n");
        return 2;
    }
    umask(022);
    return copy_folder(SOURCE, arguments[1]) < 0;
}

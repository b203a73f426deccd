/* The smallest init that uses an image as a capsule does: loads the modules in the listed order, mounts the root
 * filesystem with an upper disk over it, and runs /guest there as `user`. For `images/test/run` only; envd is the real
 * one. It prints `boot: ...` lines and powers off by a reboot, which ends QEMU (-no-reboot).
 *
 * Started on the host, it prints the rate of the processor's time stamp counter in kHz. An emulated guest shares that
 * counter and must be told: on a busy host its kernel fails to measure it, and then hangs. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

static long elapsed_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_RAW, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

static void print_counter_khz(void) {
  double begin = seconds();
  unsigned long long count = __rdtsc();
  while (seconds() - begin < 0.1) {
  }
  count = __rdtsc() - count;
  printf("%.0f\n", count / (seconds() - begin) / 1000);
}

static void stop(void) {
  fflush(stdout);
  sync();
  reboot(RB_AUTOBOOT);
  for (;;) pause();
}

static void fail(const char *what, const char *name) {
  printf("boot: FAILED %s %s: %s\n", what, name, strerror(errno));
  stop();
}

static void load_modules(void) {
  char path[256];
  FILE *list = fopen("/hearth/modules.list", "re");
  if (!list) fail("open", "/hearth/modules.list");
  while (fgets(path, sizeof path, list)) {
    path[strcspn(path, "\n")] = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("open", path);
    /* ptp_kvm answers ENODEV or EOPNOTSUPP where there is no KVM under it. */
    if (syscall(SYS_finit_module, file, "", 0) && !(strstr(path, "ptp_kvm") && errno != ENOENT && errno != ENOEXEC))
      fail("load", path);
    close(file);
  }
  fclose(list);
  printf("boot: modules after %ld ms\n", elapsed_ms());
}

static void attach(const char *source, const char *target, const char *type, unsigned long flags, const char *data) {
  if (mount(source, target, type, flags, data)) fail("mount", target);
}

int main(void) {
  int status = 0;
  if (getpid() != 1) {
    print_counter_khz();
    return 0;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("boot: init after %ld ms\n", elapsed_ms());
  sethostname("capsule", 7);
  attach("dev", "/dev", "devtmpfs", 0, "");
  load_modules();
  attach("/dev/vda", "/base", "erofs", MS_RDONLY, "");
  attach("/dev/vdb", "/upper", "ext4", MS_NOATIME, "");
  mkdir("/upper/root", 0755);
  mkdir("/upper/work", 0755);
  attach("overlay", "/newroot", "overlay", 0, "lowerdir=/base,upperdir=/upper/root,workdir=/upper/work");
  attach("dev", "/newroot/dev", "devtmpfs", 0, "");
  attach("proc", "/newroot/proc", "proc", 0, "");
  attach("sys", "/newroot/sys", "sysfs", 0, "");
  printf("boot: root filesystem after %ld ms\n", elapsed_ms());

  int from = open("/guest", O_RDONLY | O_CLOEXEC);
  int to = open("/newroot/run/guest", O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
  if (from < 0 || to < 0 || syscall(SYS_sendfile, to, from, NULL, 1 << 20) < 0) fail("copy", "/guest");
  close(to);
  pid_t child = fork();
  if (child == 0) {
    char *environment[] = {"HOME=/home/user", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", NULL};
    if (chroot("/newroot") || chdir("/home/user") || setgid(1000) || setuid(1000)) fail("enter", "/newroot");
    execle("/run/guest", "guest", NULL, environment);
    fail("run", "/guest");
  }
  while (waitpid(child, &status, 0) != child);
  printf("boot: guest ended with status %d after %ld ms\n", WEXITSTATUS(status), elapsed_ms());
  stop();
}

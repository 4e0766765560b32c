#!/bin/bash
# Boots systemd as process 1 on an overlay of a root directory, in namespaces of its own, with its own writable cgroups
# below the caller's, so that MemoryMax=, DeviceAllow= and the kernel's OOM killer bite. Run by tests/support/pid1.py
# as: unshare --pid --mount --cgroup --ipc --uts --net --fork --kill-child --propagation private THIS LAB BASE
set -euo pipefail
lab=$1 base=$2 root=$1/root
mkdir -p "$root" "$lab/upper" "$lab/work"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$lab/upper,workdir=$lab/work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys" # writable: a test triggers uevents
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
  for controller in memory devices pids cpu; do
    mkdir "$root/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
  done
  mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 ttyS0:4:64; do
  IFS=: read -r name major minor <<<"$device"
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
: >"$root/dev/console"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
ip link set lo up
hostname edge-1
cd "$root"
mkdir -p .old
pivot_root . .old
umount -l .old
mount --make-rshared / # among this machine's own namespaces: systemd puts a service's credentials there from another one
exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal --show-status=0

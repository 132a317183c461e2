# Becomes the first process of a root, in namespaces that unshare(1) has made. $1 is the folder with the root's layers: base
# (a link to what is not written), upper, work and root.
set -eu
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$(readlink -f "$1/base"),upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
mount -t tmpfs -o mode=755,nosuid tmpfs dev
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
hostname booted
ip link set lo up
pivot_root . mnt
umount -l mnt
# systemd leaves this to a container's manager. Without it no credentials reach a service.
mount --make-rshared /
# What is the host's alone: its modules, its clock, its log, and its power.
exec env -i container=booted PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set=-sys_module,-sys_rawio,-sys_time,-syslog,-sys_boot,-wake_alarm /sbin/init

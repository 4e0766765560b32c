"""The rung of whole machines: a real kernel, real USB and V4L2 devices, real power cuts. Run by ``scripts/test --vm``.

A test asks for the fixture ``guest``: a machine of its module with Debian 12 and edged's package of this working tree.
The service starts with the machine, as on a device (``systemctl stop edged`` ends it; the configuration is
/etc/edged/edged.toml). The tests and the models of the tree are at /srv/tree there.

    guest.run("modprobe", "vivid")                       # → stdout; GuestFailed unless it ends with 0
    guest.shell("udevadm settle; ls /dev/video*")        # lines of sh, ended by the first that fails
    guest.python("tests.vm.guest.frames", "40")          # a module of tests or models, in edged's own environment
    guest.copy(path, "/srv/frames")                      # file or directory of the host
    job = guest.start("edged", "devices", "--follow")    # goes on; job.lines(timeout_s) yields what it says,
    job.signal(signal.SIGTERM); job.wait(10).code        #   GuestFailed when the time is over
    guest.qmp.execute("device_add", driver="usb-tablet", id="one")

Everything there runs as root; the guest has no network. The machine is emulated where KVM does not run, ten to twenty
times slower than this one: give every wait a minute. Its kernel has the modules that ``tests.vm.image`` lists and its
Debian the packages listed there; a new one makes a new image, once. What the console said is in ``guest.log``.

``machines.boot(machines.disk())`` gives further machines, and the same disk again after ``guest.cut_power()``.
Where a part is missing the tests skip by name, and fail in CI.
"""

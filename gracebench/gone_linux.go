package main

import (
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"
)

// Not in package syscall; the number is the same on all architectures that Go runs on.
const sysPidfdOpen = 434

// waitGone returns as soon as the process has ended, whoever its parent is: a pidfd becomes readable at that moment,
// see pidfd_open(2).
func waitGone(pid int) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno == syscall.ESRCH {
		return
	}
	if errno != 0 {
		pollGone(pid) // a kernel before 5.3
		return
	}
	defer syscall.Close(int(fd))
	poll := struct {
		fd      int32
		events  int16
		revents int16
	}{fd: int32(fd), events: 1} // POLLIN
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, 0, 0, 0, 0)
		runtime.KeepAlive(&poll)
		if errno != syscall.EINTR || int(n) > 0 {
			return
		}
	}
}

// endWithBench makes the command end with this process, should this process be killed.
func endWithBench(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

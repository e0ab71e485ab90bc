package driver

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	prSetChildSubreaper = 36
	sysPidfdOpen        = 434
	pollIn              = 1
)

// becomeReaper makes this process the parent of those whose parent ends, so
// that it learns how they end.
var becomeReaper = sync.OnceFunc(func() {
	syscall.Syscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0)
})

// reap waits for the process's end and takes its status, unless its own parent
// does.
func (p *Process) reap() {
	defer close(p.exited)
	awaitEnd(p.Pid)
	for range 200 {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(p.Pid, &status, syscall.WNOHANG, nil)
		if pid == p.Pid {
			p.status = &status
			return
		}
		if err != nil && err != syscall.EINTR && err != syscall.ECHILD {
			return
		}
		// Its parent is there, and takes it; or is just ending.
		if _, err := os.Stat("/proc/" + strconv.Itoa(p.Pid)); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitEnd waits until a process has ended, whosever child it is.
func awaitEnd(pid int) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		return // it has ended, and was waited for
	}
	defer syscall.Close(int(fd))
	poll := struct {
		fd              int32
		events, revents int16
	}{fd: int32(fd), events: pollIn}
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&poll)), 1, 0, 0, 0, 0)
		if errno != syscall.EINTR {
			return
		}
	}
}

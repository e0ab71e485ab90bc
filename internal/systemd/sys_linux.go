package systemd

import (
	"net"
	"os"
	"syscall"
	"unsafe"
)

// clockMonotonic is CLOCK_MONOTONIC of clock_gettime(2).
const clockMonotonic = 1

func monotonicUsec() int64 {
	var ts syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Nano() / 1000
}

// send does what WriteMsgUnix refuses to do on a connected datagram socket.
func send(c *net.UnixConn, state []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	writeErr := raw.Write(func(fd uintptr) bool {
		err = syscall.Sendmsg(int(fd), state, rights, nil, syscall.MSG_NOSIGNAL)
		return err != syscall.EAGAIN
	})
	if writeErr != nil {
		return writeErr
	}
	return os.NewSyscallError("sendmsg", err)
}

//go:build unix

package gracehttp

import "syscall"

// waitReadable waits, under the read deadline, until something can be read, and
// reports whether there is: false is the end of the stream. It consumes nothing.
func waitReadable(raw syscall.RawConn) (readable bool, err error) {
	readErr := raw.Read(func(fd uintptr) bool {
		var n int
		n, err = peek(fd)
		readable = n > 0
		return err != syscall.EAGAIN
	})
	if readErr != nil {
		return false, readErr
	}
	return readable, err
}

// hasInput reports whether something can be read now.
func hasInput(raw syscall.RawConn) (has bool) {
	raw.Control(func(fd uintptr) {
		n, err := peek(fd)
		has = err == nil && n > 0
	})
	return has
}

func peek(fd uintptr) (n int, err error) {
	var b [1]byte
	for {
		n, _, err = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// shutdown ends the connection also for those that hold copies of it.
func shutdown(c syscall.Conn) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
}

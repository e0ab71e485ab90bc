//go:build unix

package gracehttp

import "syscall"

// waitReadable waits, under the read deadline, until something can be read, and
// returns the next byte, or nothing at the end of the stream. It consumes nothing.
func waitReadable(raw syscall.RawConn) (next []byte, err error) {
	readErr := raw.Read(func(fd uintptr) bool {
		next, err = receive(fd, syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	})
	if readErr != nil {
		return nil, readErr
	}
	return next, err
}

// hasInput reports whether something can be read now.
func hasInput(raw syscall.RawConn) (has bool) {
	raw.Control(func(fd uintptr) {
		next, err := receive(fd, syscall.MSG_PEEK)
		has = err == nil && len(next) > 0
	})
	return has
}

// skip consumes the next byte.
func skip(raw syscall.RawConn) {
	raw.Control(func(fd uintptr) { receive(fd, 0) })
}

// receive returns the next byte, or nothing at the end of the stream.
func receive(fd uintptr, flags int) ([]byte, error) {
	b := make([]byte, 1)
	for {
		n, _, err := syscall.Recvfrom(int(fd), b, flags)
		if err != syscall.EINTR {
			return b[:max(n, 0)], err
		}
	}
}

// shutdown ends the connection also for those that hold copies of it.
func shutdown(c syscall.Conn) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
}

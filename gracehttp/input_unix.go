//go:build unix

package gracehttp

import "syscall"

// waitReadable waits, under the read deadline, until something can be read, and
// reports whether there is: false is the end of the stream. It consumes nothing.
func waitReadable(raw syscall.RawConn) (readable bool, err error) {
	readErr := raw.Read(func(fd uintptr) bool {
		var next []byte
		next, err = receive(fd, syscall.MSG_PEEK)
		readable = len(next) > 0
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
		next, err := receive(fd, syscall.MSG_PEEK)
		has = err == nil && len(next) > 0
	})
	return has
}

// skipLineBreak consumes the next byte if it is one of a line break.
func skipLineBreak(raw syscall.RawConn) (skipped bool) {
	raw.Control(func(fd uintptr) {
		next, _ := receive(fd, syscall.MSG_PEEK)
		skipped = string(next) == "\r" || string(next) == "\n"
		if skipped {
			receive(fd, 0)
		}
	})
	return skipped
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

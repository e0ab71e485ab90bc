//go:build unix

package gracehttp

import "syscall"

// waitReadable waits, under the read deadline, until the first byte of a request can
// be read, and reports whether it can: false is the end of the stream. Line breaks
// between requests are consumed (RFC 9112, section 2.2): net/http does that only
// where it has answered the request before.
func waitReadable(raw syscall.RawConn) (readable bool, err error) {
	readErr := raw.Read(func(fd uintptr) bool {
		var next []byte
		for {
			next, err = receive(fd, syscall.MSG_PEEK)
			if string(next) != "\r" && string(next) != "\n" {
				break
			}
			receive(fd, 0)
		}
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

package gracehttp

import (
	"syscall"
	"unsafe"
)

// hasOutput reports whether a client has yet to receive more over TCP than what was sent
// just now, such as the last word of TLS; see SIOCOUTQ in tcp(7).
func hasOutput(raw syscall.RawConn) bool {
	var n int32
	raw.Control(func(fd uintptr) {
		syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	})
	return n > bufferSize
}

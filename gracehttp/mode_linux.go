package gracehttp

import (
	"io/fs"
	"net"
	"syscall"
)

// withMode calls open with what gives unix sockets this mode at most. On Linux a socket's
// file has the mode that the socket has when it is bound, less the umask; see unix(7).
func withMode(mode fs.FileMode, open func(net.ListenConfig) error) error {
	return open(net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = syscall.Fchmod(int(fd), uint32(mode)) }); e != nil {
			return e
		}
		return err
	}})
}

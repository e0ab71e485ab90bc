package accept

import (
	"os"
	"syscall"
)

// options are those that package net sets for each TCP connection that it makes.
var options = [...]struct{ level, name int }{
	{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE},
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE},
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL},
	{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT},
	{syscall.IPPROTO_TCP, syscall.TCP_NODELAY},
}

// KeepOptions returns what sets the options of a connection to what they are now:
// net.FileConn sets its own, for all who have the connection.
func KeepOptions(f *os.File) (restore func()) {
	raw, err := f.SyscallConn()
	if err != nil {
		return func() {}
	}
	var values [len(options)]int
	raw.Control(func(fd uintptr) {
		for i, o := range options {
			if values[i], err = syscall.GetsockoptInt(int(fd), o.level, o.name); err != nil {
				values[i] = -1 // of a unix socket
			}
		}
	})
	return func() {
		raw.Control(func(fd uintptr) {
			for i, o := range options {
				if values[i] >= 0 {
					syscall.SetsockoptInt(int(fd), o.level, o.name, values[i])
				}
			}
		})
	}
}

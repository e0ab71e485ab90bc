//go:build unix && !linux

package gracehttp

import (
	"io/fs"
	"net"
	"sync"
	"syscall"
)

// The umask is the process's.
var umasking sync.Mutex

// withMode calls open with what gives unix sockets this mode at most. Only the umask does
// that here: files that other goroutines create meanwhile may have a narrower mode.
func withMode(mode fs.FileMode, open func(net.ListenConfig) error) error {
	umasking.Lock()
	defer umasking.Unlock()
	old := syscall.Umask(0o777)
	syscall.Umask(old | int(^mode.Perm()&0o777))
	defer syscall.Umask(old)
	return open(net.ListenConfig{})
}

//go:build unix

package accept

import (
	"net"
	"os"
	"syscall"
)

// Backlog returns the connections that the kernel has completed and nobody has
// accepted. It does not wait. The listener should be paused.
func (l *Listener) Backlog() (conns []net.Conn) {
	socket, ok := l.socket.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	for {
		fd, err := -1, error(nil)
		raw.Control(func(socket uintptr) { // not called when the listener is closed
			// One that shares the socket may have made it blocking.
			syscall.SetNonblock(int(socket), true)
			syscall.ForkLock.RLock()
			defer syscall.ForkLock.RUnlock()
			if fd, _, err = syscall.Accept(int(socket)); err == nil {
				syscall.CloseOnExec(fd)
			}
		})
		if err == syscall.EINTR || err == syscall.ECONNABORTED {
			continue
		}
		if fd < 0 {
			return conns
		}
		syscall.SetNonblock(fd, true)
		f := os.NewFile(uintptr(fd), "")
		if c, err := FileConn(f); err == nil {
			conns = append(conns, c)
		}
		f.Close()
	}
}

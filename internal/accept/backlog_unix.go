//go:build unix

package accept

import (
	"net"
	"os"
	"syscall"
)

// Backlog returns the connections that the kernel has completed and nobody has
// accepted. It does not wait. The gate should be paused.
func (g *Gate) Backlog() (conns []net.Conn) {
	l, ok := g.listener.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return nil
	}
	for {
		fd, err := -1, error(nil)
		raw.Control(func(l uintptr) { // not called when the listener is closed
			// One that shares the socket may have made it blocking.
			syscall.SetNonblock(int(l), true)
			syscall.ForkLock.RLock()
			defer syscall.ForkLock.RUnlock()
			if fd, _, err = syscall.Accept(int(l)); err == nil {
				syscall.CloseOnExec(fd)
			}
		})
		if err == syscall.EINTR || err == syscall.ECONNABORTED {
			continue
		}
		if fd < 0 {
			return conns
		}
		c, err := fileConn(fd)
		if err != nil {
			continue
		}
		if c.RemoteAddr() == nil {
			c.Close() // the client has reset it: nobody can be answered
			continue
		}
		conns = append(conns, c)
	}
}

func fileConn(fd int) (net.Conn, error) {
	syscall.SetNonblock(fd, true)
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	return net.FileConn(f)
}

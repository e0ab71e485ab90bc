//go:build unix

package accept

import (
	"net"
	"os"
	"runtime"
	"syscall"
)

// takeBacklog returns the connections that the kernel has completed and nobody has
// accepted; end closes the socket. Who comes between the two is reset. If no other process
// has the socket open, that is nobody, but for a microsecond with TCP: of what could close
// that too, a filter, Linux has none for Multipath TCP, which package net listens with.
func (l *Listener) takeBacklog(alone bool, end func()) (conns []net.Conn) {
	socket, ok := l.socket.(syscall.Conn)
	if !ok {
		end()
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		end()
		return nil
	}
	alone = alone && runtime.GOOS == "linux" // elsewhere a listening socket cannot be shut down
	last := -1
	raw.Control(func(socket uintptr) { // not called when the listener is closed
		// One that shares the socket may have made it blocking.
		syscall.SetNonblock(int(socket), true)
		if alone && l.socket.Addr().Network() == "unix" {
			syscall.Shutdown(int(socket), syscall.SHUT_RD) // it still gives out what it has
		}
		last, err = newFD(func() (int, error) { return syscall.Dup(int(socket)) })
	})
	end()
	if last < 0 {
		return nil
	}
	// The copy is closed at once after the last accept, which package net could not.
	var fds []int
	for err == nil || err == syscall.EINTR || err == syscall.ECONNABORTED {
		var fd int
		fd, err = newFD(func() (int, error) {
			fd, _, err := syscall.Accept(last)
			return fd, err
		})
		if err == nil {
			fds = append(fds, fd)
		}
	}
	if alone {
		syscall.Shutdown(last, syscall.SHUT_RD)
	}
	syscall.Close(last)
	for _, fd := range fds {
		syscall.SetNonblock(fd, true)
		f := os.NewFile(uintptr(fd), "")
		if c, err := FileConn(f); err == nil {
			conns = append(conns, c)
		}
		f.Close()
	}
	return conns
}

// newFD returns what open has returned, a descriptor that no child of this process inherits.
func newFD(open func() (int, error)) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := open()
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}

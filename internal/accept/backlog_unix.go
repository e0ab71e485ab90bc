//go:build unix

package accept

import (
	"net"
	"os"
	"runtime"
	"syscall"
)

// takeBacklog returns the connections that the kernel has completed and nobody has
// accepted, and closes the socket. Who comes between the two is reset. If no other process
// has the socket open, that is nobody, but for a microsecond with TCP: of what could close
// that too, a filter, Linux has none for Multipath TCP, which package net listens with.
func (l *Listener) takeBacklog(alone bool, close func()) (conns []net.Conn) {
	socket, ok := l.socket.(syscall.Conn)
	if !ok {
		close()
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		close()
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
	close()
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

// newFD returns a descriptor that is made, which no child of this process inherits.
func newFD(make func() (int, error)) (int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := make()
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	return fd, err
}

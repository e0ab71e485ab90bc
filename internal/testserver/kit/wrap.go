//go:build unix

package kit

import (
	"bufio"
	"net"
	"sync"
)

// ProxyLine is what a client of a ProxyListener says first.
const ProxyLine = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"

// A ProxyListener speaks the PROXY protocol, version 1: a line before all else says who
// the client is. As in other implementations, what ends the reading of that line is final.
type ProxyListener struct{ net.Listener }

func (l ProxyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &proxyConn{Conn: c, input: bufio.NewReader(c)}, nil
}

type proxyConn struct {
	net.Conn
	input *bufio.Reader
	once  sync.Once
	head  string
	err   error
}

func (c *proxyConn) Read(b []byte) (int, error) {
	if c.once.Do(func() { c.head, c.err = c.input.ReadString('\n') }); c.err != nil {
		return 0, c.err
	}
	return c.input.Read(b)
}

// LimitListener is netutil.LimitListener: no more than n connections are open at a time.
func LimitListener(l net.Listener, n int) net.Listener {
	return &limitListener{Listener: l, places: make(chan bool, n), closed: make(chan bool)}
}

type limitListener struct {
	net.Listener
	places chan bool
	closed chan bool
	once   sync.Once
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.places <- true:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &limitConn{Conn: c, leave: sync.OnceFunc(func() { <-l.places })}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitConn struct {
	net.Conn
	leave func()
}

func (c *limitConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

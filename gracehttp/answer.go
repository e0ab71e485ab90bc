package gracehttp

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// An http1Writer is what net/http gives a handler to answer a request of HTTP/1.
type http1Writer interface {
	http.ResponseWriter
	io.ReaderFrom
	io.StringWriter
	Flush()
	FlushError() error
	Hijack() (net.Conn, *bufio.ReadWriter, error)
	CloseNotify() <-chan bool
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	EnableFullDuplex() error
}

// An answer is an http1Writer that says, when the header is about to be fixed, whether
// its connection takes no more requests: a drain may have begun since the handler has.
type answer struct {
	http1Writer
	server  *server
	request *http.Request
	fixed   bool
}

// fix is called before anything that fixes the header.
func (a *answer) fix() {
	if a.fixed {
		return
	}
	a.fixed = true
	if d := a.server.draining.Load(); d != nil && d.tells(a.request) {
		a.Header().Set("Connection", "close")
	}
}

func (a *answer) WriteHeader(code int) {
	switch {
	case code == http.StatusSwitchingProtocols:
		a.fixed = true // the connection is not HTTP's any more
	case code >= 200:
		a.fix()
	}
	a.http1Writer.WriteHeader(code)
}

func (a *answer) Write(b []byte) (int, error) {
	a.fix()
	return a.http1Writer.Write(b)
}

func (a *answer) WriteString(s string) (int, error) {
	a.fix()
	return a.http1Writer.WriteString(s)
}

func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	a.fix()
	return a.http1Writer.ReadFrom(r)
}

func (a *answer) Flush() { a.FlushError() }

func (a *answer) FlushError() error {
	a.fix()
	return a.http1Writer.FlushError()
}

// Hijack leaves the answer to the handler.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, buffered, err := a.http1Writer.Hijack()
	a.fixed = a.fixed || err == nil
	return c, buffered, err
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.http1Writer }

// ServeHTTP calls the user's handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handler := s.handler
	if handler == nil {
		handler = http.DefaultServeMux
	}
	if !s.plain && r.TLS == nil {
		if c := connOf(r); c != nil {
			r.TLS = c.tlsState()
		}
	}
	if r.RequestURI == "*" && r.Method == "OPTIONS" && s.options {
		handler = http.HandlerFunc(answerOptions)
	}
	if h1, ok := w.(http1Writer); ok {
		a := &answer{http1Writer: h1, server: s, request: r}
		handler.ServeHTTP(a, r)
		a.fix() // if it has written nothing
		return
	}
	if d := s.draining.Load(); d != nil && d.tells(r) {
		w.Header().Set("Connection", "close") // on HTTP/2, net/http makes that a GOAWAY
	}
	handler.ServeHTTP(w, r)
}

// answerOptions answers OPTIONS * as net/http does.
func answerOptions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "0")
	if r.ContentLength != 0 {
		io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	}
}

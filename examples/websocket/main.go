// WebSockets whose clients are told of a restart and come back: each finishes what it
// has asked for, and then connects again, to the new process. (In ../wschat they stay.)
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/facebookgo/grace/gracehttp"
	"github.com/gorilla/websocket"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()
	var all clients
	err := gracehttp.ServeWithOptions(
		[]*http.Server{{Addr: *addr, Handler: &all}},
		gracehttp.OnDrain(func() { all.leave(true) }),
		gracehttp.OnRestart(func(_ int, _ time.Duration, err error) {
			if err != nil { // this process serves on, or again
				all.leave(false)
			}
		}),
		gracehttp.DrainTimeout(10*time.Second), // for those that stay all the same
	)
	if err != nil {
		log.Fatal(err)
	}
}

// goodbye asks a client to connect again. It is a message like others, and not a close
// frame, since after that no answer may follow.
const goodbye = "goodbye"

// clients are those that are connected.
type clients struct {
	mu      sync.Mutex // guards what follows
	all     map[*client]bool
	leaving bool
}

type client struct {
	*websocket.Conn
	writing sync.Mutex
}

func (c *client) send(text string) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	return c.WriteMessage(websocket.TextMessage, []byte(text))
}

var upgrader websocket.Upgrader

// ServeHTTP answers each message with itself and the process id.
func (cs *clients) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // it has answered
	}
	c := &client{Conn: conn}
	defer c.Close()
	cs.add(c)
	defer cs.remove(c)
	for {
		_, message, err := c.ReadMessage()
		if err != nil {
			return
		}
		if c.send(fmt.Sprintf("%d %s", os.Getpid(), message)) != nil {
			return
		}
	}
}

func (cs *clients) add(c *client) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.all == nil {
		cs.all = map[*client]bool{}
	}
	cs.all[c] = true
	if cs.leaving { // its request was here already
		go c.send(goodbye)
	}
}

func (cs *clients) remove(c *client) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	delete(cs.all, c)
}

// leave tells all clients, also those that are about to connect, that it is time.
func (cs *clients) leave(leaving bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.leaving = leaving
	for c := range cs.all {
		if leaving {
			go c.send(goodbye)
		}
	}
}

package main

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"example.com/grace-examples/restarttest"
	"github.com/gorilla/websocket"
)

func TestClientsComeBackAndMissNothing(t *testing.T) {
	t.Parallel()
	s := restarttest.Start(t)
	const restarts, clients = 5, 8
	var dials atomic.Int64
	s.RestartUnderLoad(restarts, clients, func() (restarttest.Ask, error) {
		var conn *websocket.Conn
		n := 0
		return func() (pid int, err error) {
			if conn == nil {
				dials.Add(1)
				if conn, _, err = websocket.DefaultDialer.Dial("ws://"+s.Addr, nil); err != nil {
					return 0, err
				}
			}
			n++
			conn.SetReadDeadline(time.Now().Add(restarttest.Patience))
			if err := conn.WriteMessage(websocket.TextMessage, fmt.Append(nil, n)); err != nil {
				return 0, err
			}
			leave := false
			for {
				_, message, err := conn.ReadMessage()
				if err != nil {
					return 0, err
				}
				if string(message) == goodbye {
					leave = true // when this is answered
					continue
				}
				answer := 0
				if _, err := fmt.Sscanf(string(message), "%d %d", &pid, &answer); err != nil || answer != n {
					return 0, fmt.Errorf("message %d is answered %q", n, message)
				}
				break
			}
			if leave {
				conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Time{})
				conn.Close()
				conn = nil
			}
			return pid, nil
		}, nil
	})
	if got, want := dials.Load(), int64(clients*(restarts+1)); got != want {
		t.Errorf("%d clients have connected %d times over %d restarts, want %d", clients, got, restarts, want)
	}
}

// Package echo is the handler that gracebench asks of every server it measures.
package echo

import (
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Handler sends the body back, after the time that the query asks for, and says which process answers.
var Handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Pid", strconv.Itoa(os.Getpid()))
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if wait, err := time.ParseDuration(r.URL.RawQuery); err == nil {
		time.Sleep(wait)
	}
	w.Write(body)
})

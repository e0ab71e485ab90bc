//go:build unix

package main

import (
	"io"
	"net/http"
)

// serveFile answers with the file of the parameter path.
func serveFile(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, r.FormValue("path")) }

// echoWhole answers with the body when all of it is there. An answer that begins
// before would let net/http throw the rest away.
func echoWhole(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Write(body)
}

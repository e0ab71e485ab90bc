//go:build unix

package main

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"

	"github.com/facebookgo/grace/internal/testserver/kit"
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

// answerToken says that it runs for this token, and answers with that, the trailer, and
// what the body was.
func answerToken(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	token := r.URL.Query().Get("token")
	kit.Event("ran", "token", token)
	w.Header().Set("Token", token)
	w.Header().Set("Sum", r.Trailer.Get("Sum"))
	fmt.Fprintf(w, "%d %08x", len(body), crc32.ChecksumIEEE(body))
}

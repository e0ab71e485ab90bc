module github.com/facebookgo/grace

go 1.24

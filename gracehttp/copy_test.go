package gracehttp

import (
	"net/http"
	"reflect"
	"testing"
)

// A field that a later Go release adds to http.Server must not be forgotten.
func TestCopyHasAllFieldsOfTheServer(t *testing.T) {
	set, copied := &http.Server{}, map[string]bool{}
	v := reflect.ValueOf(set).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if !v.Type().Field(i).IsExported() {
			continue
		}
		copied[v.Type().Field(i).Name] = true
		switch f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int, reflect.Int64:
			f.SetInt(1)
		case reflect.String:
			f.SetString("set")
		case reflect.Pointer:
			f.Set(reflect.New(f.Type().Elem()))
		case reflect.Map:
			f.Set(reflect.MakeMap(f.Type()))
		case reflect.Func:
			f.Set(reflect.MakeFunc(f.Type(), func([]reflect.Value) []reflect.Value { panic("not called") }))
		case reflect.Interface:
			f.Set(reflect.ValueOf(http.NotFoundHandler()))
		default:
			t.Fatalf("%s: the test knows no value of kind %v", v.Type().Field(i).Name, f.Kind())
		}
	}
	s := &server{user: set, proto: set.TLSNextProto}
	got := reflect.ValueOf(s.copyHTTP()).Elem()
	for name := range copied {
		if got.FieldByName(name).IsZero() {
			t.Errorf("%s is not copied", name)
		}
	}
	if a, b := s.copyHTTP(), s.copyHTTP(); reflect.ValueOf(a.TLSNextProto).Pointer() == reflect.ValueOf(b.TLSNextProto).Pointer() {
		t.Error("two copies share TLSNextProto, to which net/http adds what belongs to one of them")
	}
}

"""Turn a trained softmax model into a linear one."""

from keras_linattn.convert._transfer import attention_errors as attention_errors
from keras_linattn.convert._distill import distill as distill
